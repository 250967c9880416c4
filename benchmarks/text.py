"""Text for the quantization benchmark: calibration from technical prose, evaluation from a news corpus, and a library's documentation.

The news corpus is `lee_background.cor` of gensim's test data (300 articles of the Australian Broadcasting Corporation,
collected by Lee, Pincombe and Welsh 2005), read out of the gensim wheel that pip downloads; nothing of it is kept here.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks

CACHE = Path.home() / ".cache" / "tightfit" / "bench"
_MEMBER = "gensim/test/test_data/lee_background.cor"
#: Characters below which a docstring is left out.
_TELLING = 400


def news_file() -> Path:
    """The news corpus as a text file, fetched once."""
    path = CACHE / "lee_background.txt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        wheels = CACHE / "wheels"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "gensim", "--no-deps", "-d", str(wheels)], check=True
        )
        wheel = next(wheels.glob("gensim-*.whl"))
        path.write_bytes(zipfile.ZipFile(wheel).read(_MEMBER))
    return path


def documentation_file() -> Path:
    """What NumPy says of its functions as a text file: technical prose with code in it, none of it from Python's reference."""
    import numpy

    path = CACHE / f"numpy-{numpy.__version__}.txt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        modules = (numpy, numpy.linalg, numpy.fft, numpy.random, numpy.ma, numpy.polynomial)
        said = (inspect.getdoc(getattr(module, name)) or "" for module in modules for name in sorted(module.__all__))
        path.write_text("\n\n".join(dict.fromkeys(text for text in said if len(text) >= _TELLING)), encoding="utf-8")
    return path


def evaluation_tokens(model_folder: Path, samples: int = 32, length: int = 512) -> torch.Tensor:
    """News text, token ids `[samples, length]`."""
    return token_blocks(TextSource(str(news_file()), samples, length, seed=0), model_folder)


def calibration_tokens(model_folder: Path, seed: int, samples: int = 64, length: int = 512) -> torch.Tensor:
    """Technical prose (Python's own language reference), `[samples, length]`, other blocks for each seed."""
    return token_blocks(TextSource(PYTHON_REFERENCE, samples, length, seed), model_folder)

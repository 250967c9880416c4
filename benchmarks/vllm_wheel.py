"""vLLM's CUDA wheels as the package index has them: fetched by pip, kept as Python source, read as syntax trees without running them."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

#: What pip may take: the wheels of vLLM are built against the stable ABI, for old and new names of the same Linux.
_PLATFORMS = (
    "manylinux1_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_31_x86_64",
    "manylinux_2_34_x86_64",
    "manylinux_2_35_x86_64",
)
_TAGS = ("--implementation", "cp", "--python-version", "3.12", "--abi", "cp38", "--abi", "abi3", "--abi", "cp312")


def fetch(version: str, folder: Path, package: str = "vllm") -> Path:
    """Return the folder of a wheel's Python files, downloaded (vLLM's has some 400 MB) unless it lies in `folder` already.

    Raises CalledProcessError where the index has no such wheel.
    """
    kept = folder / (version if package == "vllm" else f"{package}-{version}")
    if kept.is_dir():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-cache-dir",
            "--only-binary=:all:",
            *_TAGS,
            *platforms,
        ]
        subprocess.run([*command, "-d", work, f"{package}=={version}"], check=True)
        (wheel,) = Path(work).glob("*.whl")
        part = Path(work) / "part"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part, [name for name in archive.namelist() if name.endswith((".py", "/METADATA"))])
        part.rename(kept)
    return kept


@dataclass(frozen=True)
class Found:
    """A value as the source has it, and where: `engine/arg_utils.py:2544`."""

    value: Any
    place: str


@dataclass(frozen=True)
class Source:
    """The Python files of one version; paths below are relative to its package."""

    version: str
    folder: Path
    package: str = "vllm"

    @cached_property
    def _trees(self) -> dict[str, ast.Module]:
        return {}

    def text(self, path: str) -> str:
        """Return a file's text, empty where this version has no such file."""
        file = self.folder / self.package / path
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def tree(self, path: str) -> ast.Module:
        """Return a file's syntax tree, empty where this version has no such file."""
        if path not in self._trees:
            self._trees[path] = ast.parse(self.text(path))
        return self._trees[path]

    def nodes(self, *paths: str) -> Iterator[tuple[str, ast.AST]]:
        """Give every node of the files, with its file."""
        for path in paths:
            for node in ast.walk(self.tree(path)):
                yield path, node

    def function(self, name: str, *paths: str) -> tuple[str, ast.FunctionDef] | None:
        """Return the first function or method of that name, with its file."""
        for path, node in self.nodes(*paths):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return path, node
        return None

    def constant(self, name: str, *paths: str) -> Found | None:
        """Return what is assigned to a name of a module or a field of a class; literals as values, calls by their `default`."""
        for path, node in self.nodes(*paths):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=ast.expr() as value) if target == name:
                    pass
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                    pass
                case _:
                    continue
            if literal := literal_of(value):
                return Found(literal[0], f"{path}:{node.lineno}")
        return None

    def requires(self, package: str) -> str | None:
        """Return what the wheel asks of another package, as its METADATA says it."""
        for file in self.folder.glob("*.dist-info/METADATA"):
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.startswith(f"Requires-Dist: {package}") and "extra" not in line:
                    return line.removeprefix(f"Requires-Dist: {package}").strip(" ()").split(";")[0]
        return None


def literal_of(value: ast.expr) -> tuple[Any] | None:
    """Return a literal's value, boxed; of `Field(default=…)` and `set(…)` what stands in them; None for what must be computed."""
    match value:
        case ast.Call(func=ast.Name(id="Field"), keywords=keywords):
            value = next((word.value for word in keywords if word.arg == "default"), value)
        case ast.Call(func=ast.Name(id="frozenset" | "set"), args=[argument]):
            value = argument
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            value = inner
    try:
        return (ast.literal_eval(value),)
    except ValueError:
        return None

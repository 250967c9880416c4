"""What is written to start an engine on a result: pure functions from a plan to files, and one that writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.ir.model import ModelIR
from targets.engines.engine import LaunchFile

#: The folder inside a result that holds the launch files.
FOLDER = "launch"


def launch_files(plan: Mapping[str, Any], ir: ModelIR, served_name: str) -> tuple[LaunchFile, ...]:
    """The launch files of a plan's chosen engine. `ir` describes the finished checkpoint."""
    from targets.engines.exllama.launch import tabby_files
    from targets.engines.vllm.launch import vllm_files

    engine = plan["chosen"]["engine"]["name"]
    makers = {"vllm": vllm_files, "vllm-cpu": vllm_files, "exllamav2": tabby_files, "exllamav3": tabby_files}
    if engine not in makers:
        raise InputError(f"no launch files are known for the engine {engine!r}", remedy=f"choose {', '.join(makers)}")
    return makers[engine](plan, ir, served_name)


def write_launch(out: Path, files: tuple[LaunchFile, ...]) -> None:
    """Write launch files into a result, each atomically."""
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    for file in files:
        path = folder / file.path
        partial = path.with_name(path.name + ".partial")
        partial.write_text(file.text, encoding="utf-8")
        partial.chmod(0o755 if file.executable else 0o644)
        partial.replace(path)

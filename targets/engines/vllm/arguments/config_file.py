"""Reads the file of `vllm serve --config FILE` as vLLM does (0.32, `utils/argparse_utils.py`: `load_config_file`).

Keys are long names of flags; what the command line says holds over them. `true` is the bare flag, `false` its `--no-` form, a list its
values, a mapping JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.ir.fields import file_bytes
from passes.ir.yaml_places import locate, read_yaml
from targets.engines.vllm.arguments.table import Flag, find_flag

_SUFFIXES = (".yaml", ".yml")


def config_flags(path: Path) -> dict[str, Any]:
    """Return the flags of a file by vLLM's names, as `read_flags` has them. Raises InputError for what the server would stop at: no such
    file, no mapping, a key that is no flag.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(f"--config {path}: vLLM takes a .yaml or .yml file", remedy="rename it")
    try:
        node, said = read_yaml(file_bytes(path).decode(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} cannot be read: {error}", remedy="name a file that is here") from None
    if not isinstance(said, Mapping):
        raise InputError(f"--config {path} holds no keys", remedy="write `max-model-len: 8192` and the like")
    flags = {}
    for key, value in said.items():
        try:
            flag, off, _ = find_flag(f"--{key}")
        except InputError as error:
            raise InputError(error.message, remedy=error.remedy, location=locate(node, [key], str(path))) from None
        if value is not None and value != []:  # an empty list is dropped
            flags[flag.name] = _value(flag, value, off=off)
    return flags


def _value(flag: Flag, value: Any, *, off: bool) -> Any:
    if isinstance(value, bool):
        return value is not off
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        return [str(each) for each in value] if flag.takes == "values" else value
    return [str(value)] if flag.takes == "values" else str(value)

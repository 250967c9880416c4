"""A GGUF file for what it is: a model, one part of a split model, or something that goes with a model (an adapter, a projector).

Keys as llama.cpp writes them: `general.type`, `adapter.type` (`gguf-py/gguf/constants.py`), `split.no`, `split.count`
(`tools/gguf-split`; parts are called `<name>-00001-of-00003.gguf`).
"""

from __future__ import annotations

import re
from pathlib import Path

from passes.errors import InputError
from passes.ir.readers.gguf import GgufHeader, read_gguf_header

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)

#: `general.type`, or an architecture that stands for one -> what such a file is, and what to name instead.
_BESIDE_A_MODEL = {
    "adapter": (
        "an adapter that goes on top of a model",
        "Name the model that it was trained on; serve the adapter beside it.",
    ),
    "controlvector": ("a control vector that goes on top of a model", "Name the model that it steers."),
    "mmproj": ("the projector of a multimodal model (mmproj)", "Name the model's own .gguf file."),
    "clip": ("the projector of a multimodal model (mmproj)", "Name the model's own .gguf file."),
    "imatrix": ("an importance matrix, made to quantize a model", "Name the model's .gguf file."),
    "vocab": ("a vocabulary alone", "Name the model's .gguf file."),
}


#: How files begin, or what they hold in their names, that go with a model.
_BESIDE = re.compile(r"(^|[-_.])(mmproj|imatrix|lora|adapter|vocab)([-_.]|$)", re.IGNORECASE)


def models_of(folder: Path) -> list[str]:
    """List a folder's GGUF files by what to name: models before what goes with one, of a split model its first part alone."""
    files = sorted(path.name for path in folder.glob("*.gguf"))
    first = [name for name in files if (part := _PART.fullmatch(name)) is None or int(part["number"]) == 1] or files
    return sorted(first, key=lambda name: (_BESIDE.search(name) is not None, name))


def read_gguf(path: Path) -> tuple[GgufHeader, tuple[Path, ...]]:
    """Return the header of a whole model and the files that it is in: the named one, or all parts of a split one.

    Raises InputError for a file that is no model, and for a split model one of whose parts is missing.
    """
    header = read_gguf_header(path)
    _refuse_beside(path, header)
    count = header.metadata.get("split.count")
    if not isinstance(count, int) or count < 2:
        return header, (path,)
    files = _parts(path, count)
    headers = [header if file == path else read_gguf_header(file) for file in files]
    tensors = {name: tensor for part in headers for name, tensor in part.tensors.items()}
    if len(tensors) != sum(len(part.tensors) for part in headers):
        raise InputError(
            f"{path}: a tensor stands in two of its {count} parts",
            remedy="Take all parts from one conversion of the model.",
        )
    return GgufHeader(headers[0].metadata, tensors), files


def _refuse_beside(path: Path, header: GgufHeader) -> None:
    kinds = (header.metadata.get("general.type"), header.metadata.get("general.architecture"))
    found = next((_BESIDE_A_MODEL[kind] for kind in kinds if isinstance(kind, str) and kind in _BESIDE_A_MODEL), None)
    if found is None:
        return
    what, remedy = found
    lora = " (LoRA)" if header.metadata.get("adapter.type") == "lora" else ""
    raise InputError(f"{path}: {what}{lora}, not a model", remedy=remedy)


def _parts(path: Path, count: int) -> tuple[Path, ...]:
    """The files of a split model, first one first."""
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise InputError(
            f"{path}: one of {count} parts of a split model, under a name that does not tell the others",
            remedy=f"Give the parts the names that llama.cpp gives them: {path.stem}-00001-of-{count:05}.gguf and so on.",
        )
    files = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if absent := [file.name for file in files if not file.is_file()]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(
            f"{path}: part {int(match['number'])} of {count} of a split model; {absent[0]}{more} is not beside it",
            remedy="Put all parts into one folder and name any of them.",
        )
    return tuple(files)

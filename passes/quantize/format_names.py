"""The names of weight formats that users write (`--weights w4a16-g128`), and the pass each stands for.

A name is that of a format (`Format.named`), made by the format's usual method; or it begins or ends with another method; or a pass with
more to choose reads it (`exl2-4.65-h8`, `mixed-5.0-g64`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache

from passes.base import Pass
from passes.errors import InputError, unknown_name
from passes.formats.dense import Dense
from passes.formats.format import FORMATS, format_named, formats
from passes.formats.gptq import GROUP, Gptq
from passes.quantize.at_load import QuantizeAtLoad
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.mixed import QuantizeMixed
from passes.quantize.quantize import EXECUTABLE_METHODS, Quantize

#: Examples of names that say more than a format, each after those of a format.
_MORE_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "int-quantized": ("w8a8-smoothquant", "w8a8-rtn"),
    "awq": ("rtn-4-g128", "rtn-3-channel", "mixed-5.0-g64", "mixed-5.0-g64-w8a8", "mixed-5.0-g64-gptq"),
}
#: No name is longer, whatever numbers it holds.
_LONGEST = 64
#: What people type for the usual format of so many bits, or of a method.
SPOKEN: Mapping[str, str] = {
    "4bit": "w4a16-g128", "4-bit": "w4a16-g128", "int4": "w4a16-g128", "8bit": "w8a16-channel", "8-bit": "w8a16-channel",
    "awq": "awq-4-g128", "gptq": "gptq-4-g128",
}  # fmt: skip
#: What people type that names several, or by another word.
_MEANT: Mapping[str, tuple[str, ...]] = {
    "int8": ("w8a16-channel", "w8a8"), "fp4": ("nvfp4",), "bnb": ("nf4", "int8-bnb"), "bnb-4bit": ("nf4",),
    "marlin": ("gptq-4-g128",),
}  # fmt: skip
#: Types of GGUF files, which are read here and made by llama.cpp alone.
_GGUF = re.compile(r"gguf|i?q\d_(k_)?\w+")
#: Bits of the head unless the name says otherwise (`-h8`): the default of the converters.
_HEAD_BITS = 6


@cache
def examples() -> tuple[str, ...]:
    """Return what `optimize` lists: some names of every format and method."""

    def of_formats() -> Iterator[str]:
        for kind in FORMATS.names():
            yield from FORMATS.find(kind).examples
            yield from _MORE_EXAMPLES.get(kind, ())

    return (*of_formats(), "autoround-4-g128")


@cache
def methods() -> tuple[str, ...]:
    """Return the methods that a spec may name: those of the walk, and those that a format has to itself."""
    usual = (FORMATS.find(kind).usual_method for kind in FORMATS.names())
    return tuple(dict.fromkeys((*EXECUTABLE_METHODS, *usual)))


@lru_cache(maxsize=1 << 10)
def pass_named(name: str) -> Pass | None:
    """Return the pass that a format's name stands for; None for a dense name (`dense_dtype` tells which dtype).

    Raises InputError with the nearest names for one that is not known.
    """
    folded = SPOKEN.get(name.strip().lower(), name.strip().lower())
    if len(folded) > _LONGEST:
        raise unknown_name("weight format", name, examples(), remedy=f"known formats: {', '.join(examples())}")
    for kind in (QuantizeExl2, QuantizeMixed, QuantizeAtLoad):
        if (parsed := kind.named(folded)) is not None:
            return parsed
    # What other packages add is looked up last: reading their entry points takes longer than all our own names.
    stored = _by_format(folded, installed=False) or _by_method(folded) or _by_format(folded, installed=True)
    if stored is not None:
        return stored if stored.storage.is_quantized else None
    if wrong := re.fullmatch(r"(gptq|rtn|awq|autoround)-(?![2348](?:-|$))\d+(-.+)?", folded):
        raise InputError(
            f"{name!r}: {wrong[1]} has 2, 3, 4 or 8 bits (awq in its own format 4), then a group size",
            remedy=f"for example {wrong[1]}-4{wrong[2] or '-g128'}",
        )
    if re.fullmatch(r"w[48]a16|(gptq|rtn|awq|autoround)-[2348]", folded):
        raise InputError(
            f"the weight format {name!r} lacks its group size", remedy=f"write {folded}-g128, -g64, -g32 or -channel"
        )
    of_any_width = sorted(known for known in examples() if re.fullmatch(r"\w+-\d\.\d+(-g\d+)?", known))
    stems = "|".join(known.split("-")[0] for known in of_any_width)
    if re.fullmatch(rf"({stems})(-g\d+)?", folded):
        raise InputError(
            f"{name!r}: {folded.split('-')[0]} takes the bits a weight",
            remedy=f"for example {', '.join(of_any_width)}",
        )
    if _GGUF.fullmatch(folded):
        raise InputError(
            f"{name!r} is of GGUF files, which tightfit reads and does not make",
            remedy="name such a file as the model (`model: ./model.Q4_K_M.gguf`), or a format of about so many bits: w4a16-g128, exl2-4.65",
        )
    known = tuple(dict.fromkeys((*examples(), *(example for form in formats() for example in form.examples))))
    raise unknown_name(
        "weight format", name, known,
        remedy=f"known formats, of which bits and group sizes (-g32, -g64, -g128, -channel) may be others: {', '.join(known)}",
        meant=_MEANT,
    )  # fmt: skip


def _by_format(name: str, *, installed: bool) -> Quantize | None:
    """A format's own name, with the bits of the head after it where its tool stores the head."""
    match = re.fullmatch(r"(.+)-h(\d)", name)
    form = format_named(match[1] if match else name, installed=installed)
    if form is None:
        return None
    head = form.head(int(match[2]) if match else _HEAD_BITS)
    if match and head is None:
        return None
    return Quantize(form.usual_method, form, head=head, backend=form.usual_backend)


def _by_method(name: str) -> Quantize | None:
    """A name that says the method. AWQ's own format has 4 bits and groups; other widths are stored as GPTQ stores its integers."""
    if name.endswith("-smoothquant"):
        form = format_named(name.removesuffix("-smoothquant"))
        return Quantize("smoothquant", form) if form is not None and form.label.startswith("w8a8") else None
    if name.endswith("-rtn"):
        form = format_named(name.removesuffix("-rtn"))
        return Quantize("rtn", form) if form is not None and form.is_quantized else None
    match = re.fullmatch(rf"(rtn|awq|autoround)-([2348]-(?:{GROUP}))", name)
    integers = Gptq.named(f"gptq-{match[2]}") if match else None
    if match is None or integers is None:
        return None
    if match[1] == "awq":
        return Quantize("awq", replace(integers, symmetric=False))
    return Quantize(match[1], integers, backend="autoround" if match[1] == "autoround" else "native")


def dense_dtype(name: str) -> str | None:
    """Return the safetensors dtype of a dense format's name, None for a quantized one."""
    form = Dense.named(name.strip().lower())
    return form.dtype if form is not None else None

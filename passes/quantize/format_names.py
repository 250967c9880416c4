"""The names of weight formats that users write (`--weights w4a16-g128`), and the pass each stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from passes.base import Pass
from passes.errors import InputError, unknown_name
from passes.formats.awq import Awq
from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.exl3 import Exl3
from passes.formats.format import Format
from passes.formats.fp4 import Mxfp4, Nvfp4
from passes.formats.gptq import Gptq
from passes.quantize.at_load import QuantizeAtLoad
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.mixed import QuantizeMixed
from passes.quantize.quantize import Quantize

#: What `optimize` lists, one example a kind.
EXAMPLES = (
    "bf16", "fp16", "fp32", "fp8", "fp8-static", "fp8-block", "w8a8", "w8a8-static", "w8a8-smoothquant", "w4a16-g128",
    "w4a16-g128-asym", "w8a16-channel", "gptq-4-g128", "gptq-4-g128-asym", "gptq-4-g128-act", "gptq-8-g128",
    "awq-4-g128", "rtn-4-g128", "rtn-3-channel",
    "mixed-5.0-g64", "mixed-5.0-g64-w8a8", "mixed-5.0-g64-gptq", "exl2-4.65", "exl3-3.5", "nf4", "int8-bnb", "fp8-online",
    "nvfp4", "nvfp4a16", "mxfp4", "autoround-4-g128",
)  # fmt: skip

#: Bits of the head unless the name says otherwise (`exl2-4.65-h8`): the default of both converters.
_HEAD_BITS = 6


def _group(text: str) -> int:
    return -1 if text == "channel" else int(text[1:])


def _gptq(bits: int, group_size: int, marks: Sequence[str]) -> Gptq:
    return Gptq(bits, group_size, "asym" not in marks, "act" in marks, 2 if "v2" in marks else 1)


def _mixed_options(group_size: int, kind: str | None) -> tuple[Format, ...]:
    """4 bits, 8 bits (weights only, or with 8-bit activations where an engine has no other 8-bit kernel), plain numbers."""
    if kind == "gptq":
        return (Gptq(4, group_size), Gptq(8, group_size), Dense())
    eight: Format = IntQuantized() if kind == "w8a8" else PackQuantized(8, -1)
    return (PackQuantized(4, group_size), eight, Dense())


_PATTERNS: tuple[tuple[str, Callable[[re.Match[str]], Pass | None]], ...] = (
    (r"bf16|fp16|fp32", lambda m: None),
    (r"fp8(-static)?", lambda m: Quantize("rtn", FloatQuantized(-1, static=bool(m[1])))),
    (r"fp8-tensor(-static)?", lambda m: Quantize("rtn", FloatQuantized(0, static=bool(m[1])))),
    (r"fp8-block", lambda m: Quantize("rtn", FloatQuantized(-1, (128, 128)))),
    (
        r"w8a8(-static)?(-smoothquant)?",
        lambda m: Quantize("smoothquant" if m[2] else "gptq", IntQuantized(static=bool(m[1]))),
    ),
    (
        r"w([48])a16-(g[1-9]\d*|channel)(-asym)?",
        lambda m: Quantize("gptq", PackQuantized(int(m[1]), _group(m[2]), m[3] is None)),
    ),
    (
        r"gptq-([2348])-(g[1-9]\d*|channel)((?:-asym|-act|-v2)*)",
        lambda m: Quantize("gptq", _gptq(int(m[1]), _group(m[2]), m[3].split("-")[1:])),
    ),
    (r"rtn-([2348])-(g[1-9]\d*|channel)", lambda m: Quantize("rtn", Gptq(int(m[1]), _group(m[2])))),
    (r"awq-4-g([1-9]\d*)", lambda m: Quantize("awq", Awq(int(m[1])))),
    # AWQ's own format has 4 bits and groups; at other widths its integers are stored as GPTQ stores them.
    (r"awq-([2348])-(g[1-9]\d*|channel)", lambda m: Quantize("awq", Gptq(int(m[1]), _group(m[2]), symmetric=False))),
    (r"exl2-(\d(?:\.\d+)?)(?:-h([234568]))?", lambda m: QuantizeExl2(float(m[1]), int(m[2] or _HEAD_BITS))),
    (
        r"exl3-(\d(?:\.\d+)?)(?:-h([2-8]))?",
        lambda m: Quantize("exl3", Exl3(float(m[1])), head=Exl3(float(m[2] or _HEAD_BITS)), backend="exllamav3"),
    ),
    (
        r"autoround-([2348])-(g[1-9]\d*|channel)",
        lambda m: Quantize("autoround", Gptq(int(m[1]), _group(m[2])), backend="autoround"),
    ),
    (
        r"mixed-(\d(?:\.\d+)?)-g([1-9]\d*)(?:-(w8a8|gptq))?",
        lambda m: QuantizeMixed(_mixed_options(int(m[2]), m[3]), float(m[1])),
    ),
    (r"nf4|int8-bnb|fp8-online", lambda m: QuantizeAtLoad(m[0])),
    (r"nvfp4(a16)?", lambda m: Quantize("rtn", Nvfp4(m[1] is None))),
    (r"mxfp4", lambda m: Quantize("rtn", Mxfp4())),
)


def parse_scheme(name: str) -> Pass | None:
    """The pass that a format's name stands for; None for a dense name (`dense_dtype` tells which dtype).

    Raises InputError with the nearest names for one that is not known.
    """
    folded = name.strip().lower()
    for pattern, build in _PATTERNS:
        match = re.fullmatch(pattern, folded)
        if match:
            return build(match)
    if wrong := re.fullmatch(r"(gptq|rtn|awq|autoround)-(?![2348](?:-|$))\d+(-.+)?", folded):
        raise InputError(
            f"{name!r}: {wrong[1]} has 2, 3, 4 or 8 bits (awq in its own format 4), then a group size",
            remedy=f"for example {wrong[1]}-4{wrong[2] or '-g128'}",
        )
    if re.fullmatch(r"w[48]a16|(gptq|rtn|awq|autoround)-[2348]", folded):
        raise InputError(
            f"the weight format {name!r} lacks its group size", remedy=f"write {folded}-g128, -g64, -g32 or -channel"
        )
    if re.fullmatch(r"(exl2|exl3|mixed)(-g\d+)?", folded):
        raise InputError(
            f"{name!r}: {folded.split('-')[0]} takes the bits a weight",
            remedy="for example exl2-4.65, exl3-3.5, mixed-5.0-g64",
        )
    raise unknown_name(
        "weight format", name, EXAMPLES,
        remedy=f"known formats, of which bits and group sizes (-g32, -g64, -g128, -channel) may be others: {', '.join(EXAMPLES)}",
    )  # fmt: skip


def dense_dtype(name: str) -> str | None:
    """The safetensors dtype of a dense format's name, None for a quantized one."""
    return {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}.get(name.strip().lower())

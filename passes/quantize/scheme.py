"""The names of weight formats that users write (`--weights w4a16-g128`), and the pass each stands for."""

from __future__ import annotations

import re
from collections.abc import Callable

from passes.base import Pass
from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.gptq import Gptq
from passes.quantize.quantize import Quantize
from passes.reason import InputError, unknown_name

#: What `optimize` lists, one example a kind.
EXAMPLES = (
    "bf16", "fp16", "fp32", "fp8", "fp8-block", "w8a8", "w4a16-g128", "w8a16-channel", "gptq-4-g128", "gptq-8-g128",
    "rtn-4-g128", "rtn-3-channel",
)  # fmt: skip


def _group(text: str) -> int:
    return -1 if text == "channel" else int(text[1:])


_PATTERNS: tuple[tuple[str, Callable[[re.Match[str]], Pass | None]], ...] = (
    (r"bf16|fp16|fp32", lambda m: None),
    (r"fp8", lambda m: Quantize("rtn", FloatQuantized(-1))),
    (r"fp8-tensor", lambda m: Quantize("rtn", FloatQuantized(0))),
    (r"fp8-block", lambda m: Quantize("rtn", FloatQuantized(-1, (128, 128)))),
    (r"w8a8", lambda m: Quantize("gptq", IntQuantized())),
    (
        r"w([48])a16-(g\d+|channel)(-asym)?",
        lambda m: Quantize("gptq", PackQuantized(int(m[1]), _group(m[2]), m[3] is None)),
    ),
    (r"gptq-([2348])-(g\d+|channel)", lambda m: Quantize("gptq", Gptq(int(m[1]), _group(m[2])))),
    (r"rtn-([2348])-(g\d+|channel)", lambda m: Quantize("rtn", Gptq(int(m[1]), _group(m[2])))),
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
    if re.fullmatch(r"(w[48]a16|gptq-\d|rtn-\d)", folded):
        raise InputError(
            f"the weight format {name!r} lacks its group size", remedy=f"write {folded}-g128, -g64, -g32 or -channel"
        )
    raise unknown_name("weight format", name, EXAMPLES, remedy=f"known formats: {', '.join(EXAMPLES)}")


def dense_dtype(name: str) -> str | None:
    """The safetensors dtype of a dense format's name, None for a quantized one."""
    return {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}.get(name.strip().lower())

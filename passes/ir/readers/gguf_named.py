"""A GGUF file that only its name tells of: `unsloth/Qwen3-0.6B-GGUF:Q4_K_M`, `…-Q4_K_M-GGUF`, `….Q4_K_M.gguf`.

Which ggml type each matrix has follows llama.cpp's quantizer (`llama_tensor_get_type` in src/llama-quant.cpp), without an importance
matrix; publishers who choose types by themselves (`UD-…`) differ by some percent, and rows of no whole blocks take the next type that has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from passes.errors import InputError, nearest
from passes.formats.opaque import GGUF, OpaqueFormat
from passes.ir.model import Linear, ModelIR, Role
from passes.ir.readers.gguf import blocks
from passes.record import dataclass

#: Relative 90 % half width of the bytes: of llama.cpp's own mixtures, of types that publishers mix by themselves.
_SPREAD, _MIXED_SPREAD = 0.05, 0.15
_TYPE = re.compile(r"(?<![A-Za-z0-9])(?:(UD)[-_])?(I?Q\d(?:_[A-Z0-9]+){1,2}|BF16|FP?16|F32)(?![A-Za-z0-9])", re.I)
_PART = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class Mixture:
    """The type of most matrices, of values and of what leaves MLPs, of what leaves attention, and of the head. `some`: values and what
    leaves MLPs have their own type in the first and the last eighth and every third layer between; else in all.
    """

    most: str
    head: str
    better: str | None = None
    some: bool = False
    leaves_attention: str | None = None


@lru_cache(maxsize=1)
def _table() -> tuple[dict[str, Mixture], dict[str, str]]:
    """Mixtures by the names of file types, and the narrower types by those that they stand in for (`gguf_mixtures.json`)."""
    table = json.loads(Path(__file__).with_name("gguf_mixtures.json").read_text(encoding="utf-8"))
    return {name: Mixture(**row) for name, row in table["types"].items()}, table["narrower"]


#: Other names of the same, and of the same with embedding and head in 8 bits (bartowski's `_L`, Unsloth's `_XL`).
_SAME = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "Q2_K_M": "Q2_K"}
_FULL_HEAD = re.compile(r"(Q\d_K)_X?L")


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file by its name: the model that it is of, as people call it, and how it is stored."""

    model: str
    stored: str
    mixture: Mixture
    spread: float


def named_file(name: str) -> NamedFile | None:
    """Read a name of a GGUF file; None for another name, or one that says no type. Raises InputError for a type that nobody writes."""
    words, _, tag = name.partition(":")
    bare = _PART.sub("", words.rsplit("/", 1)[-1].removesuffix(".gguf"))
    if "gguf" not in name.lower():
        return None
    found = _TYPE.fullmatch(tag) if tag else next(iter(_TYPE.finditer(bare)), None)
    mixture, mixed = (None, False) if found is None else _mixture(found[2].upper())
    if found is None or mixture is None:
        if not tag:
            return None
        near = nearest(tag.upper(), _table()[0])
        raise InputError(
            f"{name}: {tag!r} is no type of GGUF files" + (f". Did you mean {' or '.join(near)}?" if near else ""),
            remedy=f"name one that the repository has, as vLLM takes it: {words}:Q4_K_M",
        )
    model = re.sub(r"(?i)[-._]?(i1[-._])?gguf$", "", bare if tag else bare[: found.start()] + bare[found.end() :])
    spread = _MIXED_SPREAD if mixed or found[1] else _SPREAD
    return NamedFile(model.strip("-._"), found[0].upper().lstrip("-_"), mixture, spread)


def _mixture(stored: str) -> tuple[Mixture | None, bool]:
    """The mixture of a type's name, and whether publishers mix it by themselves."""
    own = _table()[0].get(_SAME.get(stored, stored))
    if own is not None:
        return own, False
    full = _FULL_HEAD.fullmatch(stored)
    base = None if full is None else _table()[0].get(_SAME.get(full[1], full[1]))
    return (None if base is None else replace(base, head="Q8_0")), True


def stored_so(ir: ModelIR, file: NamedFile) -> ModelIR:
    """Describe a dense model as llama.cpp stores it in a file of this name."""
    heads = any(linear.role is Role.HEAD for linear in ir.outer)

    def of_block(layer: int, layers: int) -> Callable[[Linear], Linear]:
        return lambda linear: _stored(linear, _type_in_block(linear, file.mixture, layer, layers))

    def outer(linear: Linear) -> Linear:
        embeds = heads and linear.role is not Role.HEAD and file.mixture.head != "Q8_0"
        return _stored(linear, file.mixture.most if embeds else file.mixture.head)

    stacks = []
    for stack in ir.stacks:
        layers = len(stack.layers)
        stacks.append(stack.with_blocks(tuple(stack.block(i).map_linears(of_block(i, layers)) for i in range(layers))))
    return replace(
        ir, stacks=tuple(stacks), outer=tuple(map(outer, ir.outer)), quant_method=GGUF, spread=max(ir.spread, file.spread)
    )  # fmt: skip


def _type_in_block(linear: Linear, mixture: Mixture, layer: int, layers: int) -> str:
    """The ggml type of a matrix of a block; routers stay plain."""
    if not linear.quantizable:
        return "F32"
    last = linear.name.rsplit(".", 1)[-1]
    if last == "o_proj" and mixture.leaves_attention is not None:
        return mixture.leaves_attention
    eighth = layers // 8
    chosen = not mixture.some or layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return mixture.better if mixture.better and chosen and last in ("v_proj", "down_proj", "w2") else mixture.most


def _stored(linear: Linear, kind: str) -> Linear:
    """A matrix in a ggml type, or in the next one whose blocks its rows are made of; plain numbers stay as they are loaded."""
    if kind in ("F32", "F16", "BF16"):
        return linear
    if linear.in_features % blocks(kind)[0]:
        kind = _table()[1].get(kind, "IQ4_NL")
    if linear.in_features % blocks(kind)[0]:
        return linear
    return replace(linear, storage=in_blocks(linear, kind), stacking=None)


def in_blocks(linear: Linear, kind: str) -> OpaqueFormat:
    """Return how a file stores a matrix in blocks of a ggml type."""
    elements, size = blocks(kind)
    packed = ("weight", "U8", (linear.out_features, linear.in_features // elements * size))
    return OpaqueFormat(GGUF, linear.out_features, linear.in_features, (packed,))

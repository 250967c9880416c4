"""Building blocks that families share: attention, MLPs, experts, norms. Shapes are `[out_features, in_features]`.

Every function returns a `Part`; a block is the sum of its parts. `agree` and `reads` keys are set here once, so that every
family fuses and calibrates alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field, replace

from passes.formats.dense import Dense
from passes.formats.tensor import Tensor
from passes.ir.model import NO_STATE, Block, Linear, Role, Stacking
from passes.ir.state import LayerState
from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Some matrices and other tensors of a block."""

    linears: tuple[Linear, ...] = ()
    tensors: tuple[Tensor, ...] = ()

    def __add__(self, other: Part) -> Part:
        return Part(self.linears + other.linears, self.tensors + other.tensors)

    def block(self, state: LayerState = NO_STATE, heads: int = 0) -> Block:
        """Make the block of these parts."""
        return Block(self.linears, self.tensors, state, heads)

    def at(self, prefix: str) -> Part:
        """Put every name of these parts under `prefix`."""
        return Part(
            tuple(
                replace(
                    lin,
                    name=prefix + lin.name,
                    stacking=lin.stacking
                    and replace(
                        lin.stacking,
                        tensor=prefix + lin.stacking.tensor,
                        parts=tuple((prefix + name, rows) for name, rows in lin.stacking.parts),
                    ),
                )
                for lin in self.linears
            ),
            tuple(replace(tensor, name=prefix + tensor.name) for tensor in self.tensors),
        )

    def dense(self) -> Part:
        """Keep these parts from being quantized (towers, projectors)."""
        return Part(tuple(replace(lin, quantizable=False, agree="") for lin in self.linears), self.tensors)


#: No part.
EMPTY = Part()


def total(*parts: Part) -> Part:
    """Join parts to one."""
    return sum(parts, Part())


def stored_names(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Find one tensor for each name pattern of a checkpoint, layer and expert numbers replaced by `#`."""
    found: dict[str, Tensor] = {}
    for tensor in tensors:
        found.setdefault(_NUMBER.sub("#", tensor.name), tensor)
    return found


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads of an attention: how many of queries and of keys, elements of a key; of a value where they differ."""

    query: int
    kv: int
    size: int
    of_value: int | None = None

    @property
    def value_size(self) -> int:
        """Elements of a value."""
        return self.size if self.of_value is None else self.of_value


@dataclass(frozen=True, slots=True)
class Experts:
    """A bank of `count` experts, `active` of which serve one token; each goes from `hidden` to `inner` and back."""

    hidden: int
    inner: int
    count: int
    active: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes parts of one dtype. `stored`: the name patterns of the checkpoint's headers; None where there are none.

    Headers decide between layouts that one family is published in (experts stacked or apart, a head that is stored although
    tied); without headers the layout of the family's own repository is taken.
    """

    dtype: str
    stored: Mapping[str, Tensor] | None = field(default=None, hash=False, compare=False)

    def has(self, ending: str, *, default: bool) -> bool:
        """Tell whether a stored name pattern ends so; `default` where no headers are known."""
        return default if self.stored is None else self.find(ending) is not None

    def find(self, ending: str) -> Tensor | None:
        """Find the first stored tensor whose name pattern ends so."""
        return next((tensor for name, tensor in (self.stored or {}).items() if name.endswith(ending)), None)

    def linear(
        self, name: str, role: Role, out: int, into: int, *, bias: bool = False, agree: str = "", reads: str = "",
        quantizable: bool = True, copies: int = 1, active: float = 1, stacking: Stacking | None = None, shared: bool = False,
        dtype: str | None = None,
    ) -> Part:  # fmt: skip
        """Make one matrix."""
        dtype = dtype or self.dtype
        return Part(
            (
                Linear(
                    name,
                    role,
                    out,
                    into,
                    Dense(dtype),
                    dtype if bias else None,
                    copies,
                    active,
                    agree,
                    reads,
                    quantizable,
                    stacking,
                    shared,
                ),
            )
        )

    def tensor(self, name: str, *shape: int, dtype: str | None = None) -> Part:
        """Make one tensor that is no matrix of a linear layer."""
        return Part(tensors=(Tensor(name, dtype or self.dtype, tuple(shape)),))

    def norms(self, size: int, *names: str, bias: bool = False) -> Part:
        """Make the norm weights (and biases) of one size."""
        weights = total(*(self.tensor(f"{name}.weight", size) for name in names))
        return weights + total(*(self.tensor(f"{name}.bias", size) for name in names)) if bias else weights

    def attention(
        self, hidden: int, heads: Heads, *, qkv_bias: bool = False, o_bias: bool = False,
        names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"), gated: bool = False,
    ) -> Part:  # fmt: skip
        """Make grouped-query attention with separate projections, of `names` (value's "" where keys are the values too); `gated`: the
        query projection also makes an output gate.
        """
        q, k, v, o = names
        agree, reads = "qkv", "attn_in"
        rows = heads.query * heads.size * (2 if gated else 1)
        value_rows = heads.kv * heads.value_size
        return total(
            self.linear(q, Role.Q, rows, hidden, bias=qkv_bias, agree=agree, reads=reads),
            self.linear(k, Role.K, heads.kv * heads.size, hidden, bias=qkv_bias, agree=agree, reads=reads),
            self.linear(v, Role.V, value_rows, hidden, bias=qkv_bias, agree=agree, reads=reads) if v else Part(),
            self.linear(o, Role.O, hidden, heads.query * heads.value_size, bias=o_bias, reads="attn_out"),
        )

    def fused_attention(
        self, hidden: int, heads: Heads, *, names: tuple[str, str] = ("qkv_proj", "o_proj"), qkv_bias: bool = False,
        o_bias: bool = False,
    ) -> Part:  # fmt: skip
        """Make grouped-query attention whose q, k and v are one matrix."""
        rows = (heads.query + 2 * heads.kv) * heads.size
        return total(
            self.linear(names[0], Role.QKV, rows, hidden, bias=qkv_bias, reads="attn_in"),
            self.linear(names[1], Role.O, hidden, heads.query * heads.size, bias=o_bias, reads="attn_out"),
        )

    def gated_mlp(
        self, hidden: int, inner: int, *, bias: bool = False, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        shared: bool = False, key: str = "mlp",
    ) -> Part:  # fmt: skip
        """Make gate, up and down (SwiGLU and kin)."""
        gate, up, down = names
        agree, reads = f"{key}_gate_up", f"{key}_in"
        return total(
            self.linear(gate, Role.GATE, inner, hidden, bias=bias, shared=shared, agree=agree, reads=reads),
            self.linear(up, Role.UP, inner, hidden, bias=bias, shared=shared, agree=agree, reads=reads),
            self.linear(down, Role.DOWN, hidden, inner, bias=bias, shared=shared, reads=f"{key}_mid"),
        )

    def fused_mlp(
        self, hidden: int, inner: int, *, names: tuple[str, str] = ("gate_up_proj", "down_proj"), bias: bool = False
    ) -> Part:
        """Make gate and up in one matrix, and down."""
        return total(
            self.linear(names[0], Role.GATE_UP, 2 * inner, hidden, bias=bias, reads="mlp_in"),
            self.linear(names[1], Role.DOWN, hidden, inner, bias=bias, reads="mlp_mid"),
        )

    def plain_mlp(
        self,
        hidden: int,
        inner: int,
        *,
        names: tuple[str, str],
        bias: bool = False,
        shared: bool = False,
        key: str = "mlp",
    ) -> Part:
        """Make up and down without a gate."""
        return total(
            self.linear(names[0], Role.UP, inner, hidden, bias=bias, reads=f"{key}_in", shared=shared),
            self.linear(names[1], Role.DOWN, hidden, inner, bias=bias, reads=f"{key}_mid", shared=shared),
        )

    def experts(
        self, bank: Experts, *, prefix: str = "mlp.experts.", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        stacked: bool = False, transposed: bool = False, interleaved: bool = False,
    ) -> Part:  # fmt: skip
        """Make a bank of experts; `names` of gate ("" for none), up and down.

        `stacked`: by default the bank is two 3-D tensors, `gate_up_proj` and `down_proj`; `transposed`: `[experts, in, out]`.
        """
        whole = prefix + "gate_up_proj"
        if names[0] and (self.has(whole, default=stacked) or self.has(whole + "_blocks", default=False)):
            return self._stacked(bank, prefix, names, transposed, interleaved)
        gate, up, down = (f"{prefix}{{e}}.{name}" if name else "" for name in names)
        return total(
            self.bank(gate, Role.GATE, bank.inner, bank.hidden, bank) if gate else Part(),
            self.bank(up, Role.UP, bank.inner, bank.hidden, bank),
            self.bank(down, Role.DOWN, bank.hidden, bank.inner, bank),
        )

    def _stacked(
        self, bank: Experts, prefix: str, names: tuple[str, str, str], transposed: bool, interleaved: bool
    ) -> Part:
        hidden, inner = bank.hidden, bank.inner
        found = self.find(prefix + "gate_up_proj")
        if found is not None and len(found.shape) == 3 and hidden != 2 * inner:
            transposed = found.shape[1] == hidden
        apart = prefix + "{e}."
        gate_up = Stacking(
            prefix + "gate_up_proj", transposed, ((apart + names[0], inner), (apart + names[1], inner)), interleaved
        )
        down = Stacking(prefix + "down_proj", transposed, ((apart + names[2], hidden),))
        return total(
            self.bank(apart + "gate_up_proj", Role.GATE_UP, 2 * inner, hidden, bank, stacking=gate_up),
            self.bank(apart + names[2], Role.DOWN, hidden, inner, bank, stacking=down),
        )

    def bank(
        self, name: str, role: Role, out: int, into: int, bank: Experts, *, stacking: Stacking | None = None
    ) -> Part:
        """Make one matrix of every expert."""
        reads = "experts_mid" if role is Role.DOWN else "experts_in"
        return self.linear(
            name, role, out, into, bias=bank.bias, agree="experts", reads=reads, copies=bank.count, active=bank.active,
            stacking=stacking,
        )  # fmt: skip

    def router(self, name: str, count: int, hidden: int, *, bias: bool = False, dtype: str | None = None) -> Part:
        """Make the matrix that picks experts; recipes keep it dense."""
        return self.linear(name, Role.ROUTER, count, hidden, bias=bias, quantizable=False, dtype=dtype)

    def embedding(self, name: str, vocab: int, hidden: int) -> Part:
        """Make the token embedding."""
        return self.linear(name, Role.EMBEDDING, vocab, hidden, quantizable=False)

    def head(self, name: str, vocab: int, hidden: int, *, bias: bool = False) -> Part:
        """Make the output head. Recipes for uniform formats keep it dense; a pass may still choose to store it in fewer bits."""
        return self.linear(name, Role.HEAD, vocab, hidden, bias=bias, quantizable=False)

"""What a spec says of the passes: which are weighed, pinned or forbidden, with their options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from passes.algorithms.damping import DAMPING
from passes.base import NATIVE
from passes.chain import BACKENDS, find_backend
from passes.formats import kv_dtypes
from passes.quantize.format_names import methods, pass_named
from planner.spec.parts.values import Count, OrOne, Share, Strict, also

if TYPE_CHECKING:
    KVName = str
    MethodName = str
else:
    KVName = Literal[kv_dtypes.NAMES]
    MethodName = Literal[methods()]


class QuantizeChoice(Strict):
    """Which ways to quantize are weighed."""

    methods: Annotated[tuple[MethodName, ...], OrOne()] | None = None
    """Left out: every method."""
    formats: Annotated[tuple[str, ...], OrOne()] | None = None
    """Names of formats (`w4a16-g64`); left out: all that the engines read."""
    dense: bool | None = None
    """Whether leaving the weights as they are is weighed too. Left out: where neither methods nor formats are named."""
    backend: Annotated[str, Field(examples=[NATIVE, *BACKENDS.names()])] = NATIVE
    """Who makes the weights: tightfit's own walk, or an outside tool (`docs/backends.md`). Some formats and methods have one tool only."""
    damping: Annotated[float, Field(gt=0, lt=1)] = DAMPING
    """GPTQ's, the share of the mean of the Hessian's diagonal that is added to it (AutoGPTQ's `damp_percent`); more for texts too short."""

    @property
    def names_some(self) -> bool:
        """Whether methods or formats are named: nothing else is weighed then."""
        return self.methods is not None or self.formats is not None

    @property
    def weighs_dense(self) -> bool:
        """Whether leaving the weights as they are is weighed."""
        return not self.names_some if self.dense is None else self.dense

    def names(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Give the formats, and the outside tool, where they are named."""
        for name in self.formats or ():
            yield "formats", partial(pass_named, name)
        if self.backend != NATIVE:
            yield "backend", partial(find_backend, self.backend)


class SparseChoice(Strict):
    """Zeros among the weights."""

    method: Literal["sparsegpt", "wanda"] = "sparsegpt"
    """Which weights become zero: `sparsegpt` makes up for them with the others, `wanda` does not."""
    pattern: str = "2:4"
    """`2:4`, another n:m (n of m weights stay), or `unstructured`."""
    share: Share = 0.5
    """Share of zeros; that of the pattern."""


class PruneChoice(Strict):
    """Pinned pruning: at least one kind."""

    depth: Count | None = None
    """Blocks to drop: the ones whose removal costs least, measured when the plan is applied."""
    intermediate: Count | None = None
    """Channels that each dense MLP keeps."""
    kv_heads: Count | None = None
    """Key/value groups that each attention keeps, with their query heads."""
    importance: Literal["activation", "taylor", "fisher", "hessian"] = "hessian"
    """How channels and groups are judged: by what they add, to first order, or by what is lost when the others make up for them."""
    experts: Count | None = None
    """Experts that each mixture layer keeps."""
    sparse: SparseChoice | None = None
    """Zeros instead of weights, which take as much room."""

    @model_validator(mode="after")
    def _some(self) -> PruneChoice:
        if not (self.depth or self.intermediate or self.kv_heads or self.experts or self.sparse):
            raise ValueError("name what to prune: depth, intermediate, kv_heads, experts or sparse")
        return self


class DistillChoice(Strict):
    """Pinned recovery after pruning, or of what rounding loses."""

    method: Literal["logits", "sequences", "blockwise"] = "logits"
    """`logits`: train on the source's next-token distributions; `sequences`: on text that a teacher wrote; `blockwise`: tune each block
    as it is stored, none other in memory."""
    tokens: Count | None = None
    """Tokens to train on: 100 million, or for `blockwise` one million, unless another number is named."""
    objective: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """The divergence between teacher and student that is trained on."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of both distributions; above 1 the unlikely tokens count for more."""
    top_k: Count = 64
    """Entries of each distribution that are kept on disk, 6 bytes each."""
    hidden: Annotated[float, Field(ge=0)] = 0.0
    """The weight of the distance between the last hidden states."""
    dataset: str = "self"
    """`self` (the source writes it), a text, a data set; for `sequences` also an OpenAI-compatible endpoint (`http://host:8000/v1`)."""
    length: Annotated[int, Field(ge=16, strict=True)] = 512
    """Tokens of a sequence."""
    epochs: Count = 1
    """How often each sequence is trained on."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Of steps of 4,096 tokens; smaller steps take the root of their share."""
    lora_rank: Annotated[int, Field(ge=0, strict=True)] = 0
    """Of low-rank adapters (LoRA) that are trained in place of the weights and added to them in the end, in a third of the memory; 0: all
    weights are trained."""
    goal: Annotated[float, Field(gt=0)] | None = None
    """The held-out loss to reach, in nats a token: training stops as soon as it is out of reach (exit 4)."""
    seed: int = 0
    """Of the order of the sequences."""
    teacher: str = ""
    """The name of the model at an endpoint."""
    prompts: str = ""
    """A file with the prompts for an endpoint: a line each, or JSON lines with `prompt` or `messages`."""
    requests_per_minute: Count = 60
    """Asked of an endpoint, at most."""


#: What YAML makes of `yes` and `no`; and names by themselves.
_SWITCH = {"type": "boolean"}
_NAMES = {"type": "string"}, {"type": "array", "items": {"type": "string"}}


class PassesChoice(Strict):
    """Which passes may, must not or must be used."""

    prune: Annotated[PruneChoice | Literal["forbid", "allow"], also(_SWITCH)] = "forbid"
    """`allow` weighs dropping 3 to 25 % of the blocks or of the MLPs' channels, and up to half of the experts; without recovery
    that costs much, so it is not weighed unasked."""
    distill: Annotated[DistillChoice | Literal["forbid", "allow"], also(_SWITCH)] = "forbid"
    """Recovery after pruning: `allow` weighs pruned chains with and without it."""
    quantize: Annotated[QuantizeChoice | Literal["forbid"], also(_SWITCH, *_NAMES)] = QuantizeChoice()
    """Which formats and methods are weighed, also by their bare names (`[gptq, w4a16-g64]`); `forbid`: the weights stay as they are."""
    kv_cache: Annotated[tuple[KVName, ...], OrOne()] | None = None
    """Left out: every type that an engine has, but for fp8_e5m2, which costs more quality than fp8 (e4m3) and is for cards without it."""

    @field_validator("prune", "distill", mode="before")
    @classmethod
    def _switched(cls, said: object) -> object:
        """YAML reads `yes` and `no` as truth values."""
        return {True: "allow", False: "forbid"}[said] if isinstance(said, bool) else said

    @field_validator("quantize", mode="before")
    @classmethod
    def _named(cls, typed: object) -> object:
        """Methods and formats by their bare names: `awq`, `[gptq, w4a16-g64]`; `allow` is what is weighed anyway."""
        said = cls._switched(typed)
        if said == "allow":
            return QuantizeChoice()
        if said == []:
            raise ValueError("names nothing: write formats or methods, or `forbid`")
        names = [said] if isinstance(said, str) else said
        if said == "forbid" or not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return said
        chosen = {"methods": [name for name in names if name in methods()]}
        return {
            key: found
            for key, found in (*chosen.items(), ("formats", [n for n in names if n not in methods()]))
            if found
        }

"""What a spec says of where the model runs: the cards, the engine and its settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from planner.spec.parts.values import Bytes, Count, Positive, Strict

#: Cards of one machine where a spec names no `nodes`: the baseboards of server cards (HGX, DGX) have eight.
CARDS_A_NODE = 8
#: Cards of a plan at most: more are several of it, behind one address.
MOST_CARDS = 256


class GpuFacts(Strict):
    """A card that no list holds, by its facts (as in targets/gpus.yaml); rates are dense."""

    name: str = "inline card"
    memory_gib: Positive
    """The total that CUDA shows."""
    bandwidth_gb_s: Positive
    compute_capability: str | float | None = None
    arch: str = "unknown"
    fp16_bf16_dense_tflops: Positive | None = None
    fp16_fp16acc_dense_tflops: Positive | None = None
    fp8_dense_tflops: Positive | None = None
    int8_dense_tops: Positive | None = None
    fp4_dense_tflops: Positive | None = None
    pcie: str | None = None
    interconnect_gb_s_bidirectional: Positive | None = None


class Target(Strict):
    """The card(s)."""

    gpu: str | GpuFacts
    """A catalog name, `auto` or `cpu` (this machine), a size such as 24GB, or a card's facts."""
    count: Count | Literal["auto"] = 1
    """Cards at hand; `auto`: the fewest that meet the goals, up to `max`."""
    max: Count | None = None
    """With `count: auto`, the most cards that may be taken; left out: eight, or those of this machine for `gpu: auto`."""
    nodes: Count | None = None
    """Machines that the cards are in; left out: one for every eight cards. Tensor parallelism stays inside a machine."""
    reserve: Bytes = 0
    """Memory to keep free on each card, for a desktop or other processes."""

    @field_validator("gpu", mode="before")
    @classmethod
    def _number_typed(cls, said: object) -> object:
        """`4090` is a card's name."""
        return str(said) if type(said) is int else said

    @property
    def fewest(self) -> bool:
        """Whether the number of cards is to be chosen: as few as meet the goals."""
        return self.count == "auto"

    @property
    def cards(self) -> int:
        """The cards that a plan may take."""
        return self.count if isinstance(self.count, int) else self.max or CARDS_A_NODE

    @property
    def node(self) -> int:
        """The cards of one machine."""
        return self.cards // self.nodes if self.nodes else min(self.cards, CARDS_A_NODE)

    @model_validator(mode="after")
    def _even(self) -> Target:
        if self.cards > MOST_CARDS:
            raise ValueError(
                f"{self.cards:,} cards are more than a plan takes ({MOST_CARDS}): plan fewer, and serve several of that plan side by side"
            )
        if self.max is not None and not self.fewest:
            raise ValueError(f"max is for `count: auto`; with {self.count} cards leave it out")
        if self.nodes is not None and self.cards % self.nodes:
            raise ValueError(f"{self.cards} cards are not spread evenly over {self.nodes} nodes")
        return self


class EngineSettings(Strict):
    """Settings handed to the engine; what is left out is the engine's own default."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    enforce_eager: bool = False
    block_size: Count | None = None
    kv_cache_memory: Bytes | None = None


class EngineChoice(Strict):
    """An engine by name, with its version and settings."""

    name: str
    version: str | None = None
    settings: EngineSettings = EngineSettings()

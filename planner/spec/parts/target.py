"""What a spec says of where the model runs: the cards, the engine and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from planner.spec.parts.values import Bytes, Count, Positive, Strict, also
from targets.engines.engine import find_engine
from targets.gpu import ASSUMED_NETWORK_BYTES_PER_S, NETWORK_LATENCY_S, Network, find_gpu

#: Cards of one machine where a spec names no `nodes`: the baseboards of server cards (HGX, DGX) have eight.
CARDS_A_NODE = 8
#: Cards of a plan at most: more are several of it, behind one address.
MOST_CARDS = 256


class GpuFacts(Strict):
    """A card that no list holds, by its facts (as in targets/gpus.yaml); rates are dense."""

    name: str = "inline card"
    """What it is called in plans."""
    memory_gib: Positive
    """The total that CUDA shows."""
    bandwidth_gb_s: Positive | None = None
    """Of its memory, in GB/s (10^9 bytes); left out beside a listed card's `name`: that card, with `memory_gib` of its own (under WSL)."""
    compute_capability: str | float | None = None
    """CUDA's, which decides what formats it multiplies."""
    arch: str = "unknown"
    """NVIDIA's name of the generation: `ampere`, `ada`, `hopper`, `blackwell`."""
    fp16_bf16_dense_tflops: Positive | None = None
    """TFLOP/s of tensor cores in 16 bits, sums in 32."""
    fp16_fp16acc_dense_tflops: Positive | None = None
    """The same with sums in 16 bits, where that is faster (GeForce)."""
    fp8_dense_tflops: Positive | None = None
    """The same in FP8; left out: the card has none."""
    int8_dense_tops: Positive | None = None
    """Its integer operations in 8 bits, in 10^12 a second."""
    fp4_dense_tflops: Positive | None = None
    """The same in FP4; left out: the card has none."""
    pcie: str | None = None
    """Its PCIe generation and lanes."""
    interconnect_gb_s_bidirectional: Positive | None = None
    """NVLink in both directions together, in GB/s; left out: cards talk over PCIe."""

    @model_validator(mode="after")
    def _whole(self) -> GpuFacts:
        """A card without a bandwidth is a listed one, of which nothing but the memory is said."""
        said = self.model_dump(exclude_defaults=True).keys()
        if self.bandwidth_gb_s is None and said != {"name", "memory_gib"}:
            raise ValueError(
                "bandwidth_gb_s is missing; it may be left out beside a listed card's name and memory_gib alone"
            )
        return self


class Target(Strict):
    """The card(s)."""

    gpu: Annotated[str | GpuFacts, also({"type": "integer"})]
    """A catalog name, `auto` or `cpu` (this machine), a size such as 24GB, or a card's facts."""
    count: Count | Literal["auto"] = 1
    """Cards at hand; `auto`: the fewest that meet the goals, up to `max`."""
    max: Count | None = None
    """With `count: auto`, the most cards that may be taken; left out: eight, or those of this machine for `gpu: auto`."""
    nodes: Count | None = None
    """Machines that the cards are in; left out: one for every eight cards. Tensor parallelism stays inside a machine."""
    network_gb_s: Positive | None = None
    """Gigabytes a second of one direction of a machine's network (eight times 400 Gb/s are 400); left out: 12.5, of 100 Gb/s Ethernet."""
    bridge: bool = False
    """Whether pairs of cards have the NVLink bridge that is bought apart (RTX 3090, RTX A6000, A100 PCIe); else they speak over PCIe."""
    reserve: Bytes = 0
    """Memory to keep free on each card, for a desktop or other processes."""

    @field_validator("gpu", mode="before")
    @classmethod
    def _number_typed(cls, said: object) -> object:
        """`4090` is a card's name."""
        return str(said) if type(said) is int else said

    def names(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Give the card, where it is named."""
        if isinstance(self.gpu, str) and self.gpu != "auto":
            yield "gpu", partial(find_gpu, self.gpu)

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

    @property
    def network(self) -> Network | None:
        """What is between the machines; None where there is one."""
        if self.node >= self.cards:
            return None
        told = ASSUMED_NETWORK_BYTES_PER_S if self.network_gb_s is None else 1e9 * self.network_gb_s
        return Network(self.node, told, NETWORK_LATENCY_S)

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
    """vLLM's: the share of the card that it may take."""
    max_num_seqs: Count | None = None
    """vLLM's: requests at work at once, at most."""
    max_num_batched_tokens: Count | None = None
    """vLLM's: tokens of a step, at most."""
    enforce_eager: bool = False
    """vLLM's: no CUDA graphs."""
    block_size: Count | None = None
    """Tokens of a block of the cache."""
    kv_cache_memory: Bytes | None = None
    """Memory of the cache, in place of what is left of the card."""


class EngineChoice(Strict):
    """An engine by name, with its version and settings."""

    name: str
    """`vllm`, `vllm-cpu`, `exllamav2`, `exllamav3`, or that of an engine which another package brings."""
    version: str | None = None
    """Left out: the newest one known."""
    settings: EngineSettings = EngineSettings()
    """What is set; a plan changes none of it."""

    def names(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Give the engine."""
        yield "name", partial(find_engine, self.name)

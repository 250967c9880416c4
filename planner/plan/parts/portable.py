"""The spec as a plan carries it: without the model and the places of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.record import dataclass
from planner.plan.codec import to_json
from planner.spec.parts.workload import WorkloadSpec
from planner.spec.units import parse_share
from targets.workload import Workload

#: The parts of a spec that name texts.
TEXTS = ("calibration", "evaluation")


@dataclass(frozen=True, slots=True)
class PortableTarget:
    """The card by name, size or facts; `reserve` with its unit."""

    gpu: str | Mapping[str, Any]
    count: int | str
    reserve: str
    nodes: int | None = None
    max: int | None = None
    network_gb_s: float | None = None
    bridge: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableWorkload:
    """What is asked of the served model, in tokens and requests."""

    context: int
    concurrency: int | str | None = None
    input_tokens: int | Mapping[str, int]
    output_tokens: int | Mapping[str, int]
    images: Mapping[str, int] | None = None
    requests: int | None = None
    rate: str | None = None
    burstiness: float = 1.0
    max_concurrency: int | None = None
    ramp_up: Mapping[str, str] | None = None
    concurrency_ramp: str | None = None
    shared_prefix: int | str = 0
    trace: str | None = None

    @property
    def asked(self) -> Workload:
        """What engines are asked."""
        return WorkloadSpec.model_validate(to_json(self)).asked


@dataclass(frozen=True, slots=True)
class PortableText:
    """A text without its folder."""

    dataset: str
    samples: int
    length: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableSpec:
    """The spec without the model and the places of its files. What only the spec's own reader understands stands as people write it."""

    revision: str | None = None
    assume: str | None = None
    trust_remote_code: bool
    target: PortableTarget
    engine: str | Mapping[str, Any]
    workload: PortableWorkload
    goals: Mapping[str, Any]
    passes: Mapping[str, Any]
    calibration: PortableText
    evaluation: PortableText
    launch: tuple[str, ...] = ()

    def confidence(self, name: str) -> float:
        """Return the probability asked of each goal (`confidence`) or of the fit (`fit_confidence`), 0 to 1; 0.5 in older plans."""
        said = self.goals.get(name)
        return parse_share(said) if isinstance(said, str) else 0.5

"""The spec: what a user asks for, as strict YAML. Every error names file, line and column, what was expected, and a remedy.

Paths in a spec are relative to the spec's folder. Units are written as people write them (`planner.spec.units`), and dumped so again:
a dumped spec reads back as the same spec. Its parts stand in `planner/spec/parts/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from planner.spec.parts.choices import PassesChoice
from planner.spec.parts.goals import Goals
from planner.spec.parts.target import EngineChoice, Target
from planner.spec.parts.values import Count, OrOne, Strict
from planner.spec.parts.workload import WorkloadSpec
from targets.engines.engine import find_engine


class TextChoice(Strict):
    """A text: `self` (the model writes it), `python-reference`, a file or a Hub data set."""

    dataset: str
    """`self`, `python-reference`, a file, or a Hub data set."""
    samples: Count = 128
    """Sequences that are taken of it."""
    length: Annotated[int, Field(ge=16, strict=True)] = 2048
    """Tokens of each."""
    seed: int = 0
    """Of the choice of sequences, and of what the model writes."""


class Spec(Strict):
    """A whole spec."""

    model: str
    """A Hub id, a name of the catalog (`optimize models`), a folder with a checkpoint, or a .gguf file."""
    revision: str | None = None
    """A commit, branch or tag on the Hub; left out: the catalog, else the main branch."""
    assume: Literal["full-attention"] | None = None
    """What to take for granted of an architecture that is not understood."""
    trust_remote_code: bool = False
    """Whether tokenizer code that the model brings may run here, and model code in the engine. Off unless you say so."""
    target: Target
    """Where it must run."""
    engine: str | EngineChoice = "auto"
    """What serves it: `auto` weighs every engine that runs on the card; a name, a name with its version (`vllm 0.32`), or these
    with settings."""
    workload: WorkloadSpec = WorkloadSpec()
    """What the server must hold."""
    goals: Goals = Goals()
    """What a plan must meet, and what is preferred among plans that do."""
    passes: PassesChoice = PassesChoice()
    """Which changes of the model may, must not or must be made."""
    calibration: TextChoice = TextChoice(dataset="self")
    """The text that quantization and pruning are calibrated on."""
    evaluation: TextChoice = TextChoice(dataset="python-reference", samples=32, length=512)
    """The text that the result is judged on; it must be another one."""
    launch: Annotated[tuple[str, ...], OrOne()] = ()
    """Launch targets whose files `apply` writes beside the engine's own: `compose`, `kubernetes`, … (`optimize launch --list`)."""

    def names(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Give the engine, where it is named by itself, and the launch targets."""
        if isinstance(self.engine, str) and self.engine != "auto":
            yield "engine", partial(find_engine, self.engine)
        if self.launch:
            from targets.launch.target import find_launch_target  # nothing is loaded where none is named

            for name in self.launch:
                yield "launch", partial(find_launch_target, name)

    @field_validator("engine", mode="before")
    @classmethod
    def _with_version(cls, engine: object) -> object:
        """A name with its version in one, as people, pip and images write it (`vllm 0.32`, `vllm==0.32.0`, `vllm:v0.32`), taken apart."""
        said = (
            re.fullmatch(r"([\w-]+?)(?:\s*(?:==?|:|@)\s*|\s+)v?(\d+(?:\.\d+)*)", engine)
            if isinstance(engine, str)
            else None
        )
        return {"name": said[1], "version": said[2]} if said else engine

    @model_validator(mode="after")
    def _clients_left_open(self) -> Spec:
        """How many clients there are, where it is not said: of goals on all together it is chosen, of arrivals it follows from the rate."""
        load = self.workload
        if isinstance(load.concurrency, int) or load.arrives is (load.concurrency is None):
            return self
        on_all = self.goals.batch or self.goals.throughput is not None
        clients = None if load.arrives else load.concurrency or ("auto" if on_all else 1)
        return self.model_copy(update={"workload": load.model_copy(update={"concurrency": clients})})

    @model_validator(mode="after")
    def _no_more_than_arrives(self) -> Spec:
        wanted, rate, each = self.goals.throughput, self.workload.rate, self.workload.output.mean
        if wanted is not None and rate is not None and wanted > rate * each:
            raise ValueError(
                f"no more is served than arrives: {rate:g} requests a second of {each:,} tokens each are {rate * each:,.0f} tok/s, "
                f"the goal on throughput is {wanted:,.0f}; lower the goal, or raise the rate"
            )
        return self

    @model_validator(mode="after")
    def _texts_differ(self) -> Spec:
        if self.calibration.dataset == self.evaluation.dataset:
            raise ValueError("evaluation text must have another source than calibration text")
        return self

"""What `check` is asked, what comes of it, and the same question with some of its options changed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from passes.base import Pass
from passes.errors import InputError, Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.record import dataclass
from planner.asked import AS_IS, chain_of, rewrite, with_dtype
from planner.choice.capacity import Capacity, as_used, capacity, loaded, running_at_once
from planner.choice.capacity import reasons as short_of
from planner.choice.odds import at_least
from targets.engines.accounting import CONCURRENCY_DOES_NOT_FIT
from targets.engines.engine import Engine, MemoryEstimate, Parallel, Settings, find_engine
from targets.gpu import Gpu, find_gpu
from targets.workload import STRATEGIES, Limit, RampUp, Workload

#: Options of `check` by the names they have in `Settings`, where these differ.
_SETTINGS = {field.name: field.name for field in fields(Settings)} | {
    "engine_version": "version", "kv_cache_memory": "kv_cache_memory_bytes",
}  # fmt: skip
_PARALLEL = tuple(field.name for field in fields(Parallel))


@dataclass(frozen=True, slots=True)
class Load:
    """How requests come and what they are, beside their number and mean lengths (fields of `Workload`); by default a closed loop of as many
    as steady figures take.
    """

    requests: int | None = None
    rate: float | None = None
    burstiness: float = 1.0
    at_once: int | None = None
    ramp_up: RampUp | None = None
    ramp_s: float = 0.0
    limits: tuple[Limit, ...] = ()
    input_p95: int | None = None
    output_p95: int | None = None
    shared_prefix: int = 0
    trace: tuple[tuple[float, int, int], ...] | None = None
    pictures: int = 0
    picture_tokens: int = 0

    @classmethod
    def of(cls, workload: Workload) -> Load:
        """Return what a workload says of it."""
        return cls(**{each.name: getattr(workload, each.name) for each in fields(cls)})

    def laid_over(self, workload: Workload) -> Workload:
        """Return a workload with these fields."""
        return replace(workload, **{each.name: getattr(self, each.name) for each in fields(self)})


#: A limit in vLLM's words.
_LIMIT = re.compile(r"(ttft|tpot|e2el?)(?:_(p50|p90|p95|p99))?:(\d+(?:\.\d+)?)")


def is_limit(text: str) -> bool:
    """Tell whether a word is one limit, or several in one word."""
    return bool(text.split()) and all(_LIMIT.fullmatch(each) for each in text.split())


def limits_named(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Return the limits of texts as `vllm bench serve --goodput` has them, milliseconds each: `ttft:800`; here of a percentile too,
    `ttft_p95:2000`. Raises InputError for what is none.
    """
    out = []
    for text in (word for each in texts for word in each.split()):
        match = _LIMIT.fullmatch(text)
        if not match or not float(match[3]):
            raise InputError(
                f"{text!r} is no limit", remedy="write ttft:800, tpot:50 or e2el:9000 (milliseconds), or ttft_p95:2000"
            )
        out.append(Limit(match[1].removesuffix("l"), match[2] or "mean", float(match[3])))
    return tuple(out)


def _refuse_ramps(load: Load) -> None:
    """Raise InputError for a ramp that no load has: of clients where none wait, of a rate that is none, falls, or grows in no known way."""
    ramp, rate = load.ramp_up, load.rate
    if load.ramp_s and (rate is not None or load.trace is not None):
        raise InputError(
            "--concurrency-ramp-duration is of clients that wait for answers, and these requests arrive",
            remedy="leave it out, or say how a rate grows by --ramp-up-strategy",
        )
    if ramp is None:
        return
    if ramp.strategy not in STRATEGIES:
        raise InputError(
            f"--ramp-up-strategy {ramp.strategy!r} is not known", remedy=f"expected is {' or '.join(STRATEGIES)}"
        )
    if rate is None or not 0 < ramp.start <= rate < math.inf:
        told = "no rate" if rate is None else f"{rate:g} a second"
        raise InputError(
            f"a ramp from {ramp.start:g} requests a second to {told}",
            remedy="it grows from more than 0 to a rate that is no less",
        )


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a model, stored as named, is served by an engine on a card. None: the default of `check`'s option of that name.

    `file`: the file of another kind (GGUF) that was named, as it is stored; `model` is what it becomes where an engine does not read it.
    `longest`: where the context does not fit, the longest that does is asked in its place (`--max-model-len auto`). `refused`: what the
    words that it was asked in have against them.
    """

    model: ModelIR
    gpu: Gpu
    engine_name: str
    settings: Settings
    context: int | None = None
    concurrency: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    load: Load = Load()
    weights: str | None = None
    kv_cache_dtype: str = "auto"
    file: ModelIR | None = None
    longest: bool = False
    refused: tuple[Reason, ...] = ()

    @property
    def engine(self) -> Engine:
        """The engine. Raises InputError for an unknown name."""
        return find_engine(self.engine_name)

    @property
    def chain(self) -> tuple[Pass, ...]:
        """The passes that the names of formats stand for. Raises InputError for unknown names."""
        return chain_of(self.weights, self.kv_cache_dtype)

    @property
    def dense(self) -> ModelIR:
        """The model before the chain, in the dtype that is asked."""
        as_it_is = self.weights is None and self.unread_file is None
        return with_dtype(self.file if self.file and as_it_is else self.model, self.weights, self.settings.dtype)

    @property
    def unread_file(self) -> str | None:
        """What is counted in place of a file that the engine does not read; None where there is none, or it does."""
        kind = self.file.quant_method if self.file else None
        why = None if kind is None else self.engine.unread_file(kind, self.settings)
        return why and f"{why}: counted dequantized to 16 bits, as a plan would store it"

    @property
    def workload(self) -> Workload:
        """Lengths and clients, with their defaults."""
        taken, written = self.input_tokens or 512, self.output_tokens or 128
        if self.context is not None and self.input_tokens is None:
            taken = max(1, min(512, self.context - (self.output_tokens or 1)))
            written = self.output_tokens or max(1, min(128, self.context // 2))
        return self.load.laid_over(Workload(self.context or self.model.max_context, self.concurrency, taken, written))

    def changed(self, options: Mapping[str, Any]) -> Question:
        """Return the question with options of `check` at other values, by their names there (`gpus` follows from the degrees)."""
        own: dict[str, Any] = {}
        settings, parallel = self.settings, self.settings.parallel
        spread = parallel.spread(
            options.get("tp", parallel.tp), options.get("pp", parallel.pp), options.get("dp", parallel.dp)
        )
        parallel = replace(spread, ep=options.get("ep", spread.ep))
        for name, value in options.items():
            if name in _SETTINGS:
                settings = replace(settings, **{_SETTINGS[name]: value})
            elif name == "gpu":
                own["gpu"] = find_gpu(value)
            elif name == "engine":
                own["engine_name"] = value
            elif name == "request_rate":
                own["load"] = replace(self.load, rate=value)
            elif name == "weights":
                own["weights"] = None if value == AS_IS else value
            elif name not in ("gpus", *_PARALLEL):
                own[name] = value
        return replace(self, settings=replace(settings, parallel=parallel), **own)

    @property
    def _longest_request(self) -> int:
        """Tokens of a request, as far as its length is asked."""
        return (self.input_tokens or 0) + (self.output_tokens or 0)

    def refuse_contradictions(self) -> None:
        """Raise InputError for options that cannot hold together: requests longer than the context, gaps of arrivals that have no rate."""
        asked, own = self._longest_request, self.model.max_context
        if self.context is None and 0 < own < asked:
            raise InputError(
                f"requests of {asked:,} tokens exceed the context of {self.model.name}, which is {own:,}",
                remedy="shorter requests, or a model with a longer context",
            )
        if self.context is not None and asked > self.context:
            taken, written = self.input_tokens or 0, self.output_tokens or 0
            raise InputError(
                f"requests of {taken:,} + {written:,} tokens exceed the context of {self.context:,}",
                remedy=f"--context {asked} or more, or shorter requests",
            )
        if self.load.burstiness != 1.0 and self.load.rate is None:
            raise InputError(
                "--burstiness is of requests that arrive at a rate", remedy="give a --request-rate too, or leave it out"
            )
        _refuse_ramps(self.load)

    def outcome(self) -> Outcome:
        """Return what comes of it: the description, the memory it takes, and everything against it."""
        ir, illegal = rewrite(self.dense, self.chain)
        refused = self.engine.illegal(ir, self.gpu, self.settings)
        replicas, load = self.settings.parallel.dp, self.workload
        lengths = self.input_tokens and self.output_tokens
        if lengths and not illegal and not refused:
            load = loaded(self.engine, ir, self.gpu, self.settings, load)
        asked = None if load.concurrency is None else math.ceil(load.concurrency / replicas)
        memory = self.engine.memory(ir, self.gpu, self.settings, replace(load, concurrency=asked))
        if self.longest and not memory.starts and 0 < memory.kv.max_context < load.context:
            shorter = max(memory.kv.max_context, self._longest_request)
            return replace(self, context=shorter, longest=False).outcome()
        sequences = self.engine.scheduler(self.gpu, self.settings, load).sequences
        used = capacity(memory, sequences, load, replicas) if asked and lengths else None
        against = _of_each(memory.reasons, replicas) if used is None else short_of(memory, used, load)
        reasons = (*self.refused, *illegal, *refused)
        held = memory.memory if used is None else as_used(memory.memory, used.needed_bytes)
        return Outcome(ir, reasons, replace(memory, reasons=against, memory=held), load, asked, used)


def _of_each(reasons: tuple[Reason, ...], replicas: int) -> tuple[Reason, ...]:
    """An engine's reasons, which are one replica's: of several, saying so."""
    if replicas == 1:
        return reasons
    short = CONCURRENCY_DOES_NOT_FIT
    return tuple(
        replace(each, message=f"on each of {replicas} replicas {each.message}") if each.code == short else each
        for each in reasons
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes of a question. `illegal`: what passes and engine refuse, whatever the memory. `workload`: with the requests that a rate
    keeps in flight. `concurrency`: on each replica. `used`: the cache that requests of the asked lengths need; None where no lengths are
    asked: each request may take the whole context then.
    """

    ir: ModelIR
    illegal: tuple[Reason, ...]
    memory: MemoryEstimate
    workload: Workload
    concurrency: int | None
    used: Capacity | None

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Everything against it; of what is not modelled nothing but that is known."""
        unknown = tuple(reason for reason in self.illegal if reason.kind is ReasonKind.NOT_MODELLED)
        return unknown or (*self.illegal, *self.memory.reasons)

    @property
    def codes(self) -> frozenset[str]:
        """The reasons' codes."""
        return frozenset(reason.code for reason in self.reasons)

    @property
    def modelled(self) -> bool:
        """Whether the engine's behaviour there is known."""
        return all(reason.kind is not ReasonKind.NOT_MODELLED for reason in self.illegal)

    @property
    def starts(self) -> bool:
        """The engine comes up at this context length."""
        return self.memory.starts and not self.illegal

    @property
    def serves(self) -> bool:
        """The asked concurrency fits without preemption."""
        serves = self.memory.serves if self.used is None else self.memory.starts and self.used.room.value >= 0
        return serves and not self.illegal

    @property
    def fits(self) -> bool:
        """`starts`, and `serves` where a concurrency was asked."""
        return self.serves if self.concurrency else self.starts

    @property
    def at_once(self) -> float:
        """Requests on each replica that are surely served at once; without end where the model keeps no cache."""
        least = running_at_once(self.memory) if self.used else self.memory.kv.max_concurrency.low
        return least if math.isinf(least) else math.floor(least)

    @property
    def odds(self) -> float:
        """The probability that the memory does: for one longest request, and for all that are asked."""
        starts = at_least(self.memory.margin, 0.0)
        if not self.concurrency:
            return starts
        served = self.used.odds if self.used else at_least(self.memory.kv.max_concurrency, self.concurrency)
        return min(starts, served)

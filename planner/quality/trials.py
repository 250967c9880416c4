"""`optimize plan --measure`: the leading candidates are tried on a little text, and what they really lose replaces the prediction.

A trial is the candidate's own walk on a part of the calibration text, its choices measured (which blocks, which bits), judged by KL
and perplexity on a part of the evaluation text. Weights must be at hand. Trials are kept in the work folder under their keys.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from passes.base import NATIVE, Pass, Stage
from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import compute_devices, compute_dtype
from passes.blocks.model_class import unwalkable
from passes.chain import draw, from_json, rewrite, to_json
from passes.errors import InputError, Reason, ReasonKind
from passes.files.atomic import read_json, readable, write_json
from passes.files.lock import only_one
from passes.files.os_errors import clear_disk_errors, clear_memory_errors
from passes.ir.model import ModelIR
from passes.ir.sources import Source
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.executor import Executor
from passes.steps.key import content_key
from passes.steps.progress import Progress
from passes.steps.step import Report, Steps
from passes.text.source import TextSource, tokens_digest
from planner.choice.goals import Goal
from planner.choice.search import SearchResult
from planner.machine import ALL_HERE, Computing
from planner.quality.expected import Quality, expected_quality
from planner.spec.spec import Spec, TextChoice
from targets.quantity import Basis, Quantity

if TYPE_CHECKING:
    import torch

    from passes.measure.evaluate import Measured

#: Chains that are tried, the best of the prediction first.
LEADING = 3
#: Sequences and tokens of each text at most.
_FITTED, _JUDGING, _LENGTH = 16, 8, 512
#: Codes of the goals whose figures a trial measures.
_MEASURED = frozenset(goal.reason_code for goal in Goal if not goal.of_speed)


@dataclass(frozen=True)
class Trial:
    """A chain with every choice made, and what it was measured to lose."""

    passes: tuple[Pass, ...]
    quality: Quality


def leading(ir: ModelIR, result: SearchResult, count: int = LEADING) -> list[tuple[Pass, ...]]:
    """Return the chains worth trying, all native: the chosen one, then those that lost by quality alone, least expected loss first."""
    verdicts = [result.chosen] if result.chosen else []
    verdicts += sorted(
        (v for v in result.rejected if all(_open(reason) for reason in v.reasons)),
        key=lambda v: v.quality.log_ppl_increase.value,
    )
    chains = dict.fromkeys(v.candidate.passes for v in verdicts)
    return [chain for chain in chains if chain and all(_made_here(ir, step) for step in chain)][:count]


def _open(reason: Reason) -> bool:
    """Whether a candidate that has this against it may still turn out the best."""
    return reason.kind is ReasonKind.DOMINATED or reason.code in _MEASURED


def _made_here(ir: ModelIR, step: Pass) -> bool:
    """Whether the walk can make a pass, and it changes weights."""
    return not step.load_time and step.backend == NATIVE and not step.missing(ir)


def trials(
    spec: Spec,
    source: Source,
    result: SearchResult,
    work: Path,
    progress: Callable[[Progress], None] = lambda event: None,
    on: Computing = ALL_HERE,
) -> dict[tuple[Pass, ...], Trial]:
    """Try the leading chains, by the executor's processes where those are others. Raises InputError where the weights are not at hand, or
    the device is not.
    """
    if not source.has_weights:
        raise InputError(
            f"{source.ir.name}: only its description is known here, so nothing can be measured",
            remedy="name a folder with safetensors or a .gguf file, or plan without --measure",
        )
    if (why := unwalkable(source.ir)) is not None:
        raise InputError(f"{source.ir.name}: nothing can be measured: {why}", remedy="plan without --measure")
    from passes.run.execute import calm_libraries

    calm_libraries()
    with clear_disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    with only_one(work / "lock", work), clear_memory_errors():
        trust = spec.trust_remote_code
        texts = _part(spec.calibration, _FITTED, trust), _part(spec.evaluation, _JUDGING, trust)
        bench = _Bench(source.ir, source.materialize(work), work, texts, on.device)
        chains = leading(source.ir, result)
        if on.executor.apart:
            _tried_elsewhere(bench, chains, on.executor, progress)
        return dict(_tried(bench, chains, progress))


@dataclass(frozen=True)
class _Bench:
    """What trials have in common, as another process gets it: the model, the work folder, texts to fit and to judge by, what computes."""

    ir: ModelIR
    folder: Path
    work: Path
    texts: tuple[TextSource, TextSource]
    device: str

    def ready(self, progress: Callable[[Progress], None]) -> tuple[DenseModel, RunContext, torch.Tensor]:
        """Return the model, the run on the text to fit by, the tokens to judge by."""
        from passes.run.execute import no_tokens, source_model
        from passes.text.token_file import read_tokens, token_file

        devices = compute_devices(self.device)
        dtype = compute_dtype(self.ir.dtype, device=devices[0])
        run = RunContext(self.work, devices, dtype, no_tokens(), Steps(self.work, progress))
        named = zip(("calibration text", "evaluation text"), self.texts, strict=True)
        fitted, judging = (read_tokens(token_file(run, self.folder, name, text)) for name, text in named)
        return source_model(self.ir, self.folder, dtype, devices), run.on_text(fitted), judging


def _tried(
    bench: _Bench, chains: Sequence[tuple[Pass, ...]], progress: Callable[[Progress], None]
) -> Iterator[tuple[tuple[Pass, ...], Trial]]:
    model, run, judging = bench.ready(progress)
    for number, chain in enumerate(chains, start=1):
        told = replace(run, steps=Steps(bench.work, _told(progress, f"{number} of {len(chains)}: ")))
        yield chain, _trial(chain, model, told, judging)


def _tried_elsewhere(
    bench: _Bench, chains: Sequence[tuple[Pass, ...]], executor: Executor, progress: Callable[[Progress], None]
) -> None:
    """Have an executor's processes try the chains side by side; what they measured is found by its keys. The texts are made first: both
    would write them.
    """
    import networkx as nx
    import torch

    bench.ready(progress)
    graph: nx.DiGraph[str] = nx.DiGraph()
    for number, chain in enumerate(chains, start=1):
        graph.add_node(f"{number}: {draw(chain)}", make=partial(_try_apart, bench, chain, torch.get_num_threads()))
    for count, ended in enumerate(executor.carry_out(graph), start=1):
        if ended.error is not None:
            raise ended.error
        progress(Progress("trials", count, len(chains), ended.name, 0.0))


def _try_apart(bench: _Bench, chain: tuple[Pass, ...], threads: int) -> None:
    """Try one chain in this process, with so many threads as sums depend on them."""
    import torch

    from passes.run.execute import calm_libraries

    calm_libraries()
    torch.set_num_threads(threads)
    for _ in _tried(bench, [chain], lambda event: None):
        pass


def _trial(chain: tuple[Pass, ...], source: DenseModel, run: RunContext, judging: torch.Tensor) -> Trial:
    """A chain tried, once."""
    from passes.measure.evaluate import Measured
    from passes.measure.trial import trial
    from passes.run.execute import resolved

    key = content_key(*source.identity, "trial", to_json(chain), tokens_digest(run.text), tokens_digest(judging))
    path = run.folder / f"trial-{key}.json"
    if not readable(path):
        passes, dense = resolved(chain, source, run)
        names, blocks = " → ".join(pass_.text() for pass_ in passes), 3 * len(source)

        def make(report: Report) -> None:
            def block(done: int, total: int, detail: str = "") -> None:
                report(min(done, blocks), blocks, names)

            inside = run.on_one_device().part(path.with_suffix(""), block)
            measured = trial(passes, rewrite(source.ir, passes), dense, inside, judging, reference=source)
            write_json(path, {"passes": to_json(passes), "measured": asdict(measured)})

        run.steps.run("trial", key, False, make)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    saved = read_json(path, "trial")
    quality = _quality(Measured(**saved["measured"]), _cache_loss(source.ir, chain))
    return Trial(from_json(saved["passes"]), quality)


def _told(progress: Callable[[Progress], None], which: str) -> Callable[[Progress], None]:
    """Tells of a chain's steps under names that say which chain it is."""
    return lambda event: progress(replace(event, step=which + event.step))


def _cache_loss(ir: ModelIR, chain: Sequence[Pass]) -> Quality:
    return expected_quality(ir, [pass_ for pass_ in chain if pass_.stage is Stage.KV_CACHE])


def _part(choice: TextChoice, samples: int, trust_remote_code: bool) -> TextSource:
    return TextSource(
        choice.dataset,
        max(2, min(choice.samples, samples)),
        min(choice.length, _LENGTH),
        choice.seed,
        trust_remote_code,
    )


def _quality(measured: Measured, cache: Quality) -> Quality:
    """The measured loss, 90 % of its spread over texts, and what the cache's type is expected to add: a trial measures weights."""

    def around(value: float, stderr: float, added: Quantity) -> Quantity:
        half = measured.half_width(stderr)
        return Quantity(value + added.value, value - half + added.low, value + half + added.high, Basis.MEASURED)

    return Quality(
        around(measured.log_ppl_increase, measured.log_ppl_stderr, cache.log_ppl_increase),
        around(measured.kl, measured.kl_stderr, cache.kl),
    )

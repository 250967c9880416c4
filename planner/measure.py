"""`optimize plan --measure`: the leading candidates are tried on a little text, and what they really lose replaces the prediction.

A trial is the candidate's own walk on a part of the calibration text, its choices measured (which blocks, which bits), judged by KL
and perplexity on a part of the evaluation text. Weights must be at hand. Trials are kept in the work folder under their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from passes import graph
from passes.base import Pass
from passes.calibration import TextSource, token_blocks, tokens_digest
from passes.checkpoint import Checkpoint, read_json, write_json
from passes.content_key import code_digest, content_key, folder_identity
from passes.devices import compute_devices, compute_dtype
from passes.ir.sources import Source
from passes.reason import InputError
from planner.quality import Quality
from planner.search import SearchResult
from planner.spec import Spec, TextChoice
from targets.quantity import Basis, Quantity

if TYPE_CHECKING:
    from passes.evaluate import Measured

#: Chains that are tried, the best of the prediction first.
LEADING = 3
#: Sequences and tokens of each text at most.
_FITTED, _JUDGING, _LENGTH = 16, 8, 512
#: Reasons with which a candidate may still turn out the best.
_OPEN = ("dominated_by", "perplexity_missed", "KL_missed")


@dataclass(frozen=True)
class Trial:
    """A chain with every choice made, and what it was measured to lose."""

    passes: tuple[Pass, ...]
    quality: Quality


def leading(result: SearchResult, count: int = LEADING) -> list[tuple[Pass, ...]]:
    """The chains worth trying, all native: the chosen one, then those that lost by quality alone, least expected loss first."""
    verdicts = [result.chosen] if result.chosen else []
    verdicts += sorted(
        (v for v in result.rejected if all(reason.code in _OPEN for reason in v.reasons)),
        key=lambda v: v.quality.log_ppl_increase.value,
    )
    chains = dict.fromkeys(v.candidate.passes for v in verdicts)
    return [chain for chain in chains if chain and all(_made_here(one) for one in chain)][:count]


def _made_here(one: Pass) -> bool:
    """Whether the walk can make a pass, and it changes weights."""
    return not one.missing() and not one.load_time and one.backend == "native"


def trials(
    spec: Spec, source: Source, result: SearchResult, work: Path, say: Callable[[str], None] = lambda text: None
) -> dict[tuple[Pass, ...], Trial]:
    """Try the leading chains. Raises InputError where the weights are not at hand."""
    if not source.has_weights:
        raise InputError(
            f"{source.ir.name}: only its description is known here, so nothing can be measured",
            remedy="name a folder with safetensors or a .gguf file, or plan without --measure",
        )
    from passes.execute import calm_libraries

    calm_libraries()
    work.mkdir(parents=True, exist_ok=True)
    folder = source.materialize(work)
    return dict(_tried(spec, source, folder, work, leading(result), say))


def _tried(
    spec: Spec, source: Source, folder: Path, work: Path, chains: list[tuple[Pass, ...]], say: Callable[[str], None]
) -> Iterator[tuple[tuple[Pass, ...], Trial]]:
    from passes.contest import trial
    from passes.evaluate import Measured, Side
    from passes.resolve import Resolver

    trust = spec.trust_remote_code
    fitted = token_blocks(_part(spec.calibration, _FITTED, trust), folder)
    judging = token_blocks(_part(spec.evaluation, _JUDGING, trust), folder)
    device = compute_devices()[0]
    dtype = compute_dtype(source.ir.dtype)
    identity: list[object] = [folder_identity(folder), str(dtype), device.type, code_digest()]
    for number, chain in enumerate(chains, start=1):
        say(f"trying {number} of {len(chains)}: {' → '.join(one.text() for one in chain)}")
        key = content_key("trial", graph.to_json(chain), tokens_digest(fitted), tokens_digest(judging), identity)
        path = work / f"trial-{key}.json"
        if not path.exists():
            resolver = Resolver(
                source.ir, Checkpoint(folder), fitted, work, dtype, device, identity,
                lambda name, key, done, make: None if done else make(lambda n, total: None),
            )  # fmt: skip
            passes = resolver.resolved(chain)
            measured = trial(
                passes, graph.rewrite(source.ir, passes), Side(resolver.dense, resolver.weights), fitted, judging,
                work / f"trial-{key}", dtype, device, reference=Side(source.ir, Checkpoint(folder)),
            )  # fmt: skip
            write_json(path, {"passes": graph.to_json(passes), "measured": asdict(measured)})
        saved = read_json(path, "trial")
        yield chain, Trial(graph.from_json(saved["passes"]), _quality(Measured(**saved["measured"])))


def _part(choice: TextChoice, samples: int, trust_remote_code: bool) -> TextSource:
    return TextSource(
        choice.dataset, min(choice.samples, samples), min(choice.length, _LENGTH), choice.seed, trust_remote_code
    )


def _quality(measured: Measured) -> Quality:
    """Twice the standard error over sequences on each side."""

    def around(value: float, stderr: float) -> Quantity:
        return Quantity(value, value - 2 * stderr, value + 2 * stderr, Basis.MEASURED)

    return Quality(around(measured.log_ppl_increase, measured.log_ppl_stderr), around(measured.kl, measured.kl_stderr))

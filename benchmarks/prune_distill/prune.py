"""Width pruning of the MLPs by a fifth: what importance is worth, and what compensation takes back."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.prune_distill.bench import Bench, Line, grown, growth, lines, ratio
from passes.blocks.dense_model import DenseModel
from passes.prune.width import WidthPrune

#: What looks at no text, which the others are held against.
_BLIND = ("magnitude", "random")


def narrower(bench: Bench, importance: str, *, compensate: bool) -> DenseModel:
    """Return the model a fifth narrower. What is compensated looks at all of the calibration text."""
    pass_ = WidthPrune(bench.subject.channels, importance=importance, compensate=compensate)
    looked_at = None if compensate else bench.subject.chosen_on
    return pass_.dense(bench.source, bench.within("prune", looked_at)).descends_from(bench.source)


def rises(bench: Bench, importance: str, *, compensate: bool) -> dict[str, torch.Tensor]:
    """Return what a pass makes of the losses on each judging text."""
    return bench.rises(narrower(bench, importance, compensate=compensate))


def importance(bench: Bench) -> Iterator[Line]:
    """Yield what each cut loses, with nothing made up for."""
    raw = {}
    for name in bench.subject.importances:
        raw[name] = rises(bench, name, compensate=False)
        yield from lines(f"cut by {name}: perplexity grows by", "%", {text: grown(r) for text, r in raw[name].items()})
    chosen = bench.subject.chosen
    for blind in _BLIND:
        figures = {text: ratio(found, raw[blind][text]) for text, found in raw[chosen].items()}
        yield from lines(f"cut by {chosen} over cut by {blind}", "of the rise", figures, 0.8)


def compensation(bench: Bench) -> Iterator[Line]:
    """Yield what is left of that when the others make up for what is gone."""
    chosen = bench.subject.chosen
    made_up = rises(bench, chosen, compensate=True)
    figures = {text: grown(found) for text, found in made_up.items()}
    yield from lines(f"by {chosen}, compensated: perplexity grows by", "%", figures)
    raw = {name: rises(bench, name, compensate=False) for name in bench.subject.importances}
    figures = {text: ratio(found, raw[chosen][text]) for text, found in made_up.items()}
    yield from lines(f"by {chosen}, compensated, over cut by {chosen}", "of the rise", figures, 0.5)
    for text, found in made_up.items():
        best = min(raw, key=lambda name: growth(raw[name][text]))
        name = f"by {chosen}, compensated, over the best cut (by {best}), on {text}"
        yield Line(name, ratio(found, raw[best][text]), "of the rise", 0.5)

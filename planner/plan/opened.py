"""A saved plan or a finished result, opened again: its spec, its card, and the description of the checkpoint that is served."""

from __future__ import annotations

from pathlib import Path

from passes.chain import rewrite
from passes.errors import InputError
from passes.ir.model import ModelIR
from passes.ir.names import find, published_of
from passes.ir.sources import Source, open_model
from passes.record import dataclass
from planner.choice.demand import target_gpu
from planner.choice.space.published import description
from planner.plan.codec import to_json
from planner.plan.document import PlanDocument, asked_spec, spec_of
from planner.plan.saved import PLAN, load_plan, read_plan
from planner.spec.parse import validated
from planner.spec.spec import Spec
from targets.gpu import Gpu, find_gpu, unlisted_gpu


@dataclass(frozen=True, slots=True)
class Opened:
    """A plan, its spec, and `ir`: the checkpoint that it serves."""

    document: PlanDocument
    spec: Spec
    ir: ModelIR

    @property
    def gpu(self) -> Gpu:
        """The planned card; one that was found as `auto` by its name."""
        if self.spec.target.gpu != "auto":
            return target_gpu(self.spec)
        lock = self.document.lock.gpu
        try:
            return find_gpu(lock.name)
        except InputError:
            return unlisted_gpu(lock.name, lock.memory_bytes)


def opened(what: Path) -> Opened:
    """Open a saved plan, or the folder of a result. Raises InputError where it is neither, or its model is not found."""
    if not what.is_dir():
        return _planned(load_plan(what))
    if not (what / PLAN).is_file():
        raise InputError(
            f"{what} is no finished result", remedy="name the folder that `optimize apply` made, or a plan"
        )
    document = read_plan(what / PLAN)
    if document.places is not None:  # served as it is: the plan names where the checkpoint lies
        return _planned(document)
    said = to_json(document.spec) | {"model": str(what)}
    return Opened(document, validated(None, said, "the spec in the plan"), open_model(what).ir)


def _planned(document: PlanDocument) -> Opened:
    spec = spec_of(document)
    return Opened(document, spec, rewrite(source_of(document, spec), document.decision.chain))


def planned_source(document: PlanDocument, spec: Spec) -> Source:
    """Open a plan's model where it lies now: one that moved has no commit any more. Raises InputError where it is not found."""
    moved = document.places is not None and "model" in document.places.moved
    if Path(spec.model).is_absolute() and not Path(spec.model).exists():
        raise InputError(
            f"the plan's model is not at {spec.model} any more",
            remedy="say where it lies now: `optimize apply PLAN --model PATH`; its headers and config must be the plan's",
        )
    return open_model(spec.model, revision=None if moved else spec.revision, assume=spec.assume)


def source_of(document: PlanDocument, spec: Spec) -> ModelIR:
    """Return the checkpoint that a plan starts from; of a published one that the Hub does not answer for, what its format stores."""
    try:
        return planned_source(document, spec).ir
    except InputError:
        asked = asked_spec(document).model
        dense = find(asked)
        made = next((each for each in published_of(dense.id) if each.id == spec.model), None) if dense else None
        stored = None if made is None else description(open_model(asked).ir, made)
        if stored is None:
            raise
        return stored

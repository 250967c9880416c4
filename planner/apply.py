"""`optimize apply`: run a plan exactly, write its launch files, and prove the result against the prediction."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from passes.base import Pass, Stage
from passes.blocks.devices import compute_devices, require_memory
from passes.chain import needs_text, rewrite
from passes.errors import DoesNotFitError, GoalMissedError, InputError
from passes.files.atomic import write_json
from passes.files.lock import only_one
from passes.files.manifest import damage, write_manifest
from passes.files.os_errors import clear_disk_errors, clear_memory_errors
from passes.host_memory import memory_total_bytes
from passes.ir.model import ModelIR
from passes.run.execute import calm_libraries, execute
from passes.run.job import Job, Outcome
from passes.run.result_folder import MARKER, check_places, claim, holding, partial_of, publish
from passes.steps.progress import Progress
from passes.text.source import TextSource
from planner.apply_cost import effort
from planner.certificate import NAME, Certificate, MeasuredGoal, certificate
from planner.choice.goals import Goal
from planner.figures import apart, show
from planner.kept import require_own_place
from planner.machine import ALL_HERE, Computing, computing_on
from planner.plan.codec import to_json
from planner.plan.document import PlanDocument, portable, require_executable, resolved_plan, spec_of
from planner.plan.effort import Effort
from planner.plan.launch import of_plan, of_result, target_files
from planner.plan.lock import require_fresh
from planner.plan.make import Plan, plan
from planner.plan.opened import Opened, planned_source
from planner.plan.saved import PLAN, load_plan, save
from planner.spec.arguments import called, file_named, of_kind, optional_path, public, record
from planner.spec.spec import Spec, TextChoice
from targets.engines.engine import find_engine
from targets.gpu import Gpu
from targets.launch.write import FOLDER, write_launch

if TYPE_CHECKING:
    import torch


#: How files of weights end, which no step writes again where they are there in their size.
_WEIGHTS = ".safetensors"
#: Stages whose result is another model than its source, and ships only where it meets its goals.
_OTHER_MODEL = (Stage.PRUNE, Stage.DISTILL)


@dataclass(frozen=True)
class ApplyResult:
    """A finished result: its folder, the plan that it follows, the certificate, and what the run returned; neither of these where the
    checkpoint is served as it is, of which launch files were written.
    """

    out: Path
    plan: PlanDocument
    certificate: Certificate | None = None
    outcome: Outcome | None = None

    @property
    def holds(self) -> bool:
        """Whether everything promised was kept."""
        return self.certificate is None or self.certificate.holds


def default_folder(what: Path) -> Path:
    """Return where the result of a plan or spec is made unless another folder is named."""
    return _folder(_name(what))


def _folder(name: str) -> Path:
    return Path(f"{name}-tightfit")


def _name(path: Path) -> str:
    return path.stem if path.suffix in (".yaml", ".yml") else path.name.removesuffix(".json").removesuffix(".plan")


def find_plan(folder: Path) -> Path:
    """Return the plan last saved in a folder. Raises InputError where there is none."""
    plans = sorted(folder.glob("*.plan.json"), key=lambda path: path.stat().st_mtime)
    if not plans:
        raise InputError(
            f"no plan is saved in {folder.resolve()}", remedy="`optimize plan SPEC` makes one, or name a plan or spec"
        )
    return plans[-1]


@public
def apply(
    what: str | Path | Plan | PlanDocument,
    out: str | Path | None = None,
    *,
    work: Path | None = None,
    replace: bool = False,
    progress: Callable[[Progress], None] = lambda event: None,
    on: Computing = ALL_HERE,
) -> ApplyResult:
    """Apply a plan (from `plan`, its document, its file) or a spec file. `out` defaults to `<name>-tightfit` in the current folder.

    A finished result of another plan that lies at `out` is refused (InputError), or with `replace` replaced when the new one is whole.
    Raises StalePlanError, DoesNotFitError or InputError before anything is done where the plan cannot be applied.
    """
    work = optional_path("work", work, "a folder for what is made on the way")
    of_kind("replace", replace, bool, "True or False")
    called("progress", progress)
    record("on", on, Computing)
    device = on.device
    document, name = _document(what, device)
    as_it_is = document.decision.nothing_to_make
    if not as_it_is:
        require_executable(document)
    spec = spec_of(document)
    source = planned_source(document, spec)
    require_fresh(document, spec, source)
    out = _folder(name) if out is None else file_named("out", out, "the folder of the result")
    place = out.resolve()
    work = work or place.parent / f".{place.name}.work"
    check_places(out, work, source.path)
    if as_it_is:
        return _served_as_it_is(
            Opened(document, spec, rewrite(source.ir, document.decision.chain)), out, replace=replace
        )
    passes, trust = document.decision.chain, spec.trust_remote_code
    planned = rewrite(source.ir, passes)
    target_files(
        of_result(document, place, planned), document.spec.launch
    )  # refuses what cannot be written before any work
    require_whole(place)
    result = _Result(document, place, work, needs_text(passes, planned), replace)
    result.keep_others()
    calm_libraries()
    devices = compute_devices(device)
    expected = _expected(document, spec, source.ir, computing_on(devices[0]))
    _require_memory(expected, devices[0])
    with clear_disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    progress(Progress("model", 0, 1, "", 0.0))
    began = monotonic()
    with only_one(work / "lock", work), clear_memory_errors():
        folder = source.materialize(
            work, lambda done, total: progress(Progress("model", done, total, "", monotonic() - began))
        )
    texts = _text(spec.calibration, trust), _text(spec.evaluation, trust)
    job = Job(source.ir, folder, passes, out, work, *texts, device=device)
    finish = partial(result.finish, expected)
    outcome = execute(job, progress, resolved=result.resolved, finish=finish, executor=on.executor)
    return ApplyResult(out, document, result.certificates[-1], outcome)


@dataclass
class _Result:
    """A result in the making: what it must not put away, and what is written into its folder beside the weights."""

    document: PlanDocument
    place: Path
    work: Path
    calibrated: bool
    replace: bool
    certificates: list[Certificate] = field(default_factory=list)

    def keep_others(self) -> None:
        """Refuse to put another plan's finished result away, unless that is asked for."""
        if not self.replace:
            require_own_place(self.place, self.document, calibrated=self.calibrated)

    def resolved(self, passes: Sequence[Pass], target: ModelIR) -> None:
        """Save the plan with its measured choices, once more sure of the place: now no other run can put a result there."""
        self.keep_others()
        save(portable(resolved_plan(self.document, passes, target.tensor_bytes)), self.work / PLAN)

    def finish(self, expected: Effort, outcome: Outcome, folder: Path) -> None:
        """Write launch files, the plan, the certificate and the list of files. `expected`: what the work was to take."""
        decision = resolved_plan(self.document, outcome.passes, outcome.tensor_bytes)
        server = of_result(decision, self.place, outcome.target)
        write_launch(folder, [*server.launch.files, *target_files(server, self.document.spec.launch)])
        save(portable(decision), folder / PLAN)
        made = certificate(decision, outcome, folder, self.document.decision.passes, expected)
        if any(pass_.stage in _OTHER_MODEL for pass_ in outcome.passes):
            write_json(self.work / NAME, to_json(made))
            try:
                require_met(made, self.place, self.work)
            except GoalMissedError:
                shutil.rmtree(folder)
                raise
        self.certificates.append(made)
        write_json(folder / NAME, to_json(made))
        write_manifest(folder)


def require_met(made: Certificate, place: Path, work: Path) -> None:
    """Refuse to ship a pruned or distilled model that misses a goal on quality: it is another model than the one that was asked for.
    Raises GoalMissedError, which says by how much.
    """
    missed = [goal for goal in made.goals if not goal.met]
    if missed:
        said = "; ".join(map(_shortfall, missed))
        raise GoalMissedError(
            f"what became of {made.model} misses its goal, and {place.name} is not made: {said}",
            remedy=f"prune less, distil on more tokens, or plan with a goal that it meets, which uses the same work; {work / NAME} holds "
            "what was measured",
        )


def _shortfall(goal: MeasuredGoal) -> str:
    """A missed goal and by how much; growths of perplexity differ by points."""
    wanted, measured = apart(goal.wanted, goal.measured, goal.name.unit)
    over = goal.measured - goal.wanted
    more = show(100 * over, "points") if goal.name is Goal.PERPLEXITY else show(over, goal.name.unit)
    return f"{goal.name} {measured} > {wanted}, {more} too much"


def _served_as_it_is(plan: Opened, out: Path, *, replace: bool) -> ApplyResult:
    """Write the launch files of a checkpoint that is served as it is: they name it, and nothing of it is copied. The plan beside them
    keeps its places.
    """
    place, document = out.resolve(), plan.document
    server = of_plan(plan, place)
    files = [*server.launch.files, *target_files(server, document.spec.launch)]
    if not replace:
        require_own_place(place, document, calibrated=False)
    with holding(place):
        folder = partial_of(place)
        claim(folder)
        write_launch(folder, files)
        save(document, folder / PLAN)
        write_json(folder / MARKER, {"key": document.digest, "passes": to_json(document.decision.passes), "files": {}})
        write_manifest(folder)
        publish(folder, place)
    return ApplyResult(out, document)


def require_whole(place: Path) -> None:
    """Refuse a finished result whose files were changed in place, naming each: no step would make them anew."""
    changed = [each for each in damage(place) if each.kind == "changed" and each.file.endswith(_WEIGHTS)]
    if changed:
        raise GoalMissedError(
            f"{place} is damaged: {'; '.join(each.message for each in changed[:5])}",
            remedy=f"remove it and the work folder beside it (.{place.name}.work), whose files are the same on disk, and apply again",
        )


def next_step(result: ApplyResult) -> str:
    """Return what to do with a result: verify it where its engine can be driven; and what serves it."""
    script = next(iter(sorted((result.out / FOLDER).glob("*.sh"))), None)
    serves = f"start it as {result.out / FOLDER} says" if script is None else f"{script} serves it"
    if find_engine(result.plan.decision.engine.name).verifier() is None:
        return serves
    return f"optimize verify {result.out}; {serves}"


def _expected(document: PlanDocument, spec: Spec, source: ModelIR, here: Gpu) -> Effort:
    """What the work takes on what computes here: as the plan says, where it was made for this, else forecast anew."""
    chosen = document.decision
    for said in (chosen.apply, chosen.apply_on_card):
        if said is not None and said.steps and said.device == here.name:
            return said
    return effort(spec, source, rewrite(source, chosen.chain), chosen.chain, here)


def _require_memory(expected: Effort, device: torch.device) -> None:
    """Refuse work whose least expected memory what computes lacks: a card what is free of it, a processor this machine's memory."""
    least, there = expected.memory_bytes.low, memory_total_bytes()
    fewer = "fewer or shorter calibration samples (`calibration:`)"
    if device.type == "cuda":
        require_memory(device, least, fewer)
    elif least > there:
        raise DoesNotFitError(
            f"the work takes at least {least / 2**30:.0f} GiB of memory, this machine has {there / 2**30:.0f} GiB",
            remedy=f"{fewer}, or a larger machine",
        )


def _document(what: str | Path | Plan | PlanDocument, device: str) -> tuple[PlanDocument, str]:
    if isinstance(what, Plan):
        what = what.document
    if isinstance(what, PlanDocument):
        return what, what.model.rsplit("/", 1)[-1]
    file = file_named("what is applied", what, "a plan, its file, or the file of a spec")
    if file.suffix in (".yaml", ".yml"):
        return plan(file, on=Computing(device)).document, _name(file)
    return load_plan(file), _name(file)


def _text(choice: TextChoice, trust_remote_code: bool) -> TextSource:
    return TextSource(choice.dataset, choice.samples, choice.length, choice.seed, trust_remote_code)

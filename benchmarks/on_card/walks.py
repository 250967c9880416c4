"""The walk on four blocks of an 8B shape: seconds a block and memory of each kind of pass, beside what is predicted; a profile of GPTQ."""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks.on_card.measuring import GIB, by_block, lapses, peaks
from benchmarks.on_card.shapes import Walked, text_size, walked
from benchmarks.on_card.staging import Notes, NotHereError, Setup
from passes import chain
from passes.base import Pass
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.kv_cache import KVCachePass
from passes.prune.sparse import Sparsify
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.quantize import Quantize
from passes.walk.walk import Walk
from targets.machine.devices import installed_gpus

_W4 = PackQuantized(4, 128)
#: EXL2's (attention, MLP) options of a layer at about four bits a weight.
_EXL2_OPTIONS = (8, 8)
CHAINS: dict[str, tuple[Pass, ...]] = {
    "gptq": (Quantize("gptq", _W4),),
    "awq": (Quantize("awq", Awq(128)),),
    "fp8": (Quantize("rtn", FloatQuantized()),),
    "sparsegpt24": (Sparsify("sparsegpt", 0.5, "2:4"), Quantize("gptq", _W4), KVCachePass("fp8", True)),
    "exl2": (QuantizeExl2(6.0, choices=(_EXL2_OPTIONS,) * 4),),
}
#: The step of a forecast whose seconds are those of all blocks.
_WALK, _MEASURE = "walk", "measure EXL2"


class _SeenError(Exception):
    """What was asked for has been seen."""


def apply(setup: Setup, note: Notes, kind: str) -> None:
    """Walk the four blocks with one chain; then measure EXL2's options, on as many blocks as the stage has time for."""
    passes = CHAINS[kind]
    work = walked(setup, kind)
    size = text_size(setup)
    note(chain=chain.draw(passes), blocks=len(work.dense), samples=size.samples, length=size.length)
    note(predicted=predicted(setup, work, passes))
    target = chain.rewrite(work.ir, passes)
    began = time.monotonic()
    state = Walk(work.dense, target, chain.method(passes), work.run).run()
    # An output head that is stored too is no block.
    seconds = [report.seconds for report in state.reports[: len(work.dense)]]
    losses = {f"{report.block}.{name}": loss for report in state.reports for name, loss in report.losses.items()}
    note(walk=by_block(seconds), walk_s=round(time.monotonic() - began, 2), losses=losses, **peaks())
    found = note.found
    card = "" if found["card_peak_gib"] is None else f"; card {found['card_peak_gib']} GiB"
    said = f"{found['walk']['block_s']:.2f} s a block, first {found['walk']['first_s']:.2f}{card}"
    said += f"; predicted {found['predicted']['walk_block_s']} s"
    said = f"{said}; four blocks {found['walk_s']:.1f} s in all"
    note(headline=said)
    if kind == "exl2":
        _measure_exl2(work, note)
        note(headline=f"{said}; options {found['measure']['block_s']:.2f} s a block", measure_peaks=peaks())


def _measure_exl2(work: Walked, note: Notes) -> None:
    """Seconds of measuring EXL2's options, block by block."""
    from passes.quantize.exl2_errors import measure

    stamps = [time.monotonic()]

    def report(done: int, total: int, detail: str = "") -> None:
        stamps.append(time.monotonic())
        note(measure=by_block(lapses(stamps)))

    measure(work.dense, work.run.part(work.run.folder / "options", report))


def predicted(setup: Setup, work: Walked, passes: tuple[Pass, ...]) -> dict[str, Any]:
    """What the planner says of the walk on this machine: seconds a block, GiB at most."""
    from planner.apply_cost import forecast
    from planner.spec.spec import Spec

    size = text_size(setup)
    spec = Spec.model_validate({
        "model": str(work.folder), "target": {"gpu": next(iter(installed_gpus()), "cpu")}, "workload": {"context": 8192},
        "calibration": {"dataset": "python-reference", "samples": size.samples, "length": size.length},
        "evaluation": {"dataset": "self", "samples": 2, "length": 128},
    })  # fmt: skip
    open_choice = tuple(QuantizeExl2(each.bpw) if isinstance(each, QuantizeExl2) else each for each in passes)
    graph = forecast(spec, work.ir, chain.rewrite(work.ir, open_choice), open_choice)
    steps = {step.name: step for step in graph.steps}
    blocks = len(work.dense)
    walk, options = steps[_WALK], steps.get(_MEASURE)
    return {
        "walk_block_s": round(walk.seconds / blocks, 2) if walk.seconds is not None else None,
        "walk_peak_gib": round(walk.peak_bytes / GIB, 2) if walk.peak_bytes else None,
        "measure_block_s": round(options.seconds / blocks, 2) if options is not None and options.seconds else None,
    }


def profile(setup: Setup, note: Notes) -> None:
    """GPTQ's second block under torch's profiler: the operations that take most, on the card and on the processor, as text."""
    import torch
    from torch.profiler import ProfilerActivity

    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    watched = torch.profiler.profile(activities=activities)
    work = walked(setup, "profile")
    stamps: list[float] = []

    def report(done: int, total: int, detail: str = "") -> None:
        stamps.append(time.monotonic())
        if done == 1:
            watched.start()
        if done == 2:
            watched.stop()
            raise _SeenError

    passes = CHAINS["gptq"]
    target = chain.rewrite(work.ir, passes)
    try:
        Walk(work.dense, target, chain.method(passes), work.run.part(work.run.folder, report)).run()
    except _SeenError:
        pass
    else:
        raise NotHereError("the walk ended before its second block")
    note(profiled_block_s=round(stamps[1] - stamps[0], 2), **peaks())
    events = watched.key_averages()
    note(events=sum(event.count for event in events))
    note(cpu=events.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=70).splitlines())
    if cuda:
        note(cuda=events.table(sort_by="self_device_time_total", row_limit=25, max_name_column_width=70).splitlines())
    print(json.dumps(note.found.get("cuda", note.found["cpu"])), flush=True)
    note(headline=f"{note.found['profiled_block_s']} s under the profiler, {note.found['events']:,} operations")

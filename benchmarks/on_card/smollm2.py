"""SmolLM2-135M on the card: the demo's chain beside the processor's, text that the model writes itself, EXL2's options."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.on_card.measuring import by_block, lapses, peaks
from benchmarks.on_card.staging import Notes, NotHereError, Setup
from benchmarks.real_models import smollm2_here
from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import compute_devices, compute_dtype
from passes.files.checkpoint import Checkpoint
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.steps.context import RunContext
from passes.steps.step import Steps
from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks

_ROOT = Path(__file__).parents[2]
#: Text of the chain, the same for both devices: less than the demo's, so that a processor does it within the stage.
_SAMPLES, _LENGTH = 32, 128
_OWN = TextSource("self", 64, 256)
#: EXL2's options are measured on so many blocks.
_MEASURED_BLOCKS = 6


class _SeenError(Exception):
    """What was asked for has been seen."""


def model(setup: Setup) -> tuple[Path, ModelIR]:
    """SmolLM2 as a folder in the work folder, and its description. Raises NotHereError where the file is not on this machine."""
    gguf = smollm2_here()
    if gguf is None:
        raise NotHereError(
            "SmolLM2-135M-Instruct.Q4_1.gguf is in neither .models nor ~/.cache/tightfit (`make demo` fetches it)"
        )
    source = open_model(gguf)
    place = setup.work / "smollm2"
    place.mkdir(parents=True, exist_ok=True)
    return source.materialize(place), source.ir


def pages_file(setup: Setup) -> Path:
    """The text of this project's own pages as one file: calibration text that no device has written."""
    path = setup.work / "pages.txt"
    path.write_text(
        "\n".join(page.read_text("utf-8") for page in [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))])
    )
    return path


def chain_on_both(setup: Setup, note: Notes) -> None:
    """The demo's chain on the same text by the first device and by the processor: KL of each to the source, bytes that are equal."""
    from planner.plan.make import plan
    from planner.plan.saved import save
    from planner.spec.spec import Spec

    folder, _ = model(setup)
    samples, length = (4, 64) if setup.shape == "tiny" else (_SAMPLES, _LENGTH)
    demo = yaml.safe_load((_ROOT / "examples" / "smollm2-cpu.yaml").read_text())
    made = plan(Spec.model_validate(demo | {
        "model": str(folder), "calibration": {"dataset": str(pages_file(setup)), "samples": samples, "length": length},
        "evaluation": {"dataset": PYTHON_REFERENCE, "samples": samples // 2, "length": 2 * length},
    }))  # fmt: skip
    if not made.feasible:
        raise NotHereError("no plan for this processor meets the demo's goals")
    place = setup.work / "smollm2-chain"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    save(made.document, place / "smollm2.plan.json")
    note(chain=made.document.decision.label, samples=samples, length=length)
    results = {}
    for where in ("device", "processor"):
        results[where] = _applied(place, where)
        note(**{where: results[where]})
    kl, other = results["device"]["kl"], results["processor"]["kl"]
    note(kl_apart=round(kl / other - 1, 4), **equal_bytes(place / "device", place / "processor"))
    note(
        headline=f"KL {kl:.4f} on {results['device']['on']}, {other:.4f} on the processor ({kl / other - 1:+.2%}); "
        f"{note.found['equal_bytes']:.1%} of the bytes equal; {results['device']['seconds']:.0f} s and {results['processor']['seconds']:.0f} s"
    )


def _applied(place: Path, where: str) -> dict[str, Any]:
    """Apply the plan in a process that sees the card, or none."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if where == "processor" else {}
    command = [sys.executable, "-m", "benchmarks.on_card.smollm2", str(place / "smollm2.plan.json"), str(place / where)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | hidden, check=False)
    print(done.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(f"apply on the {where}: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def equal_bytes(one: Path, other: Path) -> dict[str, Any]:
    """The share of two checkpoints' bytes, and of their tensors, that are the same."""
    ours, theirs = Checkpoint(one), Checkpoint(other)
    same = total = tensors = whole = 0
    for name in ours.names:
        left, right = (each.read([name])[name].contiguous().flatten() for each in (ours, theirs))
        if left.dtype != right.dtype or left.shape != right.shape:
            raise ValueError(f"{name} has another form there")
        equal = int((_bytes(left) == _bytes(right)).sum())
        size = left.numel() * left.element_size()
        same, total, tensors, whole = same + equal, total + size, tensors + 1, whole + (equal == size)
    return {"equal_bytes": round(same / total, 6), "equal_tensors": whole, "tensors": tensors}


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.view(torch.uint8) if tensor.dim() and tensor.numel() else tensor


def _context(setup: Setup, ir: ModelIR, name: str, folder: Path, source: TextSource) -> RunContext:
    place = setup.work / "walks" / name
    shutil.rmtree(place, ignore_errors=True)
    return RunContext(place, compute_devices()[:1], compute_dtype(ir.dtype), token_blocks(source, folder), Steps(place))


def own_text(setup: Setup, note: Notes) -> None:
    """Tokens a second of text that the model writes itself, twice: the first time with whatever is made once."""
    folder, _ = model(setup)
    source = replace(_OWN, samples=4, length=32) if setup.shape == "tiny" else _OWN
    tokens, seconds, writing = source.samples * source.length, [], []
    for seed in (0, 1):
        told: list[tuple[float, int, str]] = []

        def report(done: int, total: int, detail: str = "", told: list[tuple[float, int, str]] = told) -> None:
            told.append((time.monotonic(), done, detail))

        began = time.monotonic()
        token_blocks(replace(source, seed=seed), folder, None, report)
        seconds.append(time.monotonic() - began)
        (first, before, how), (last, done, _) = told[0], told[-1]
        writing.append((done - before) / (last - first))
        note(
            tokens=tokens, seconds=[round(each, 2) for each in seconds], tok_s=round(tokens / seconds[-1], 1),
            writing_tok_s=round(writing[-1], 1), how=how, **peaks(),
        )  # fmt: skip
    note(
        headline=f"{writing[-1]:,.0f} tokens/s written ({how or 'plain loop'}); {tokens:,} in {seconds[-1]:.1f} s with loading, the first time "
        f"{seconds[0]:.1f} s"
    )


def exl2_options(setup: Setup, note: Notes) -> None:
    """Seconds a block of measuring EXL2's options."""
    from passes.quantize.exl2_errors import measure

    folder, ir = model(setup)
    size = TextSource(PYTHON_REFERENCE, 4, 64) if setup.shape == "tiny" else TextSource(PYTHON_REFERENCE, 64, 256)
    run = _context(setup, ir, "smollm2-exl2", folder, size)
    blocks = 2 if setup.shape == "tiny" else _MEASURED_BLOCKS
    stamps = [time.monotonic()]

    def report(done: int, total: int, detail: str = "") -> None:
        stamps.append(time.monotonic())
        note(measure=by_block(lapses(stamps)))
        if done == blocks:
            raise _SeenError

    with suppress(_SeenError):
        measure(DenseModel(ir, Checkpoint(folder)), run.part(run.folder, report))
    note(samples=size.samples, length=size.length, **peaks())
    note(headline=f"{note.found['measure']['block_s']:.2f} s a block, first {note.found['measure']['first_s']:.2f}")


def main(plan: Path, out: Path) -> None:
    """Apply a plan on what this process sees; print what came of it as one line of JSON."""
    from planner.apply import apply
    from planner.plan.saved import load_plan

    began = time.monotonic()
    result = apply(load_plan(plan), out, work=out.with_name(f"{out.name}.work"), progress=lambda event: None)
    measured = result.outcome.measured
    assert measured is not None
    steps: Mapping[str, float] = {step.name: step.seconds for step in result.outcome.steps}
    found = {
        "on": str(compute_devices()[0]), "kl": measured.kl, "kl_stderr": measured.kl_stderr, "perplexity": measured.perplexity,
        "seconds": round(time.monotonic() - began, 1), "steps": steps, **peaks(),
    }  # fmt: skip
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Bits where they matter: EXL2 and mixed formats beside uniform GPTQ and the usual hand rules, through the whole of `apply`.

    python -m benchmarks.allocation MODEL_FOLDER [--sources twin grid] [--chains exl2 mixed sparse awq curve]

Every line is one run of the pass graph: 64 x 512 calibration tokens (Python's language reference), KL(source ‖ result) on 32 x 512
tokens of news text. `bits` are bytes of the decoder's matrices over their weights, all included. Seconds are those of the steps
(measuring, walk), text and evaluation not counted; a step that an earlier line made already is not counted twice, so
`measured` says what it took when it ran. Results are kept in the cache folder; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as passes.run.execute does; read when torch is loaded

from benchmarks.degrid import degrid
from benchmarks.text import CACHE, news_file
from passes import chain
from passes.base import Pass
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.ir.model import ModelIR, Role
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.sparse import Sparsify
from passes.quantize.exl2 import QuantizeExl2, budget_bytes, resolved_bytes
from passes.quantize.mixed import QuantizeMixed, quantized_weights
from passes.quantize.quantize import Quantize
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import PYTHON_REFERENCE, TextSource

_FOUR, _EIGHT = PackQuantized(4, 64), PackQuantized(8, -1)
_OPTIONS: tuple[Format, ...] = (_FOUR, _EIGHT, Dense())
_CURVE = (2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
_STEPS = ("measure EXL2", "measure formats", "compare allocations", "walk")


def chains(ir: ModelIR, kinds: Sequence[str]) -> Iterator[tuple[str, tuple[Pass, ...]]]:
    """Label and passes of every line."""
    yield "gptq w4 g64", (Quantize("gptq", _FOUR),)
    if "awq" in kinds:
        yield "awq w4 g64 asym", (Quantize("awq", PackQuantized(4, 64, symmetric=False)),)
        yield "gptq w4 g64 asym", (Quantize("gptq", PackQuantized(4, 64, symmetric=False)),)
        yield "awq w4 g64 gemm", (Quantize("awq", Awq(64)),)
    if "sparse" in kinds:
        kv = KVCachePass("fp8", True)
        yield "gptq w4 + fp8 kv", (Quantize("gptq", _FOUR), kv)
        yield "2:4 + gptq w4 + fp8 kv", (Sparsify("sparsegpt", 0.5, "2:4"), Quantize("gptq", _FOUR), kv)
    if "exl2" in kinds:
        yield "exl2, bytes of gptq", (QuantizeExl2(_exl2_bits_of(ir, _FOUR)),)
    if "mixed" in kinds:
        for name, roles, ends in (
            ("hand: first and last 8", (), True), ("hand: down 8", (Role.DOWN,), False), ("hand: v and down 8", (Role.V, Role.DOWN), False),
        ):  # fmt: skip
            yield name, (Quantize("gptq", _FOUR, _by_hand(ir, roles, ends)),)
        yield "mixed at first and last's", (QuantizeMixed(_OPTIONS, bits(ir, (Quantize("gptq", _FOUR, _by_hand(ir, (), True)),))),)  # fmt: skip
        yield "mixed 5.0", (QuantizeMixed(_OPTIONS, 5.0),)
        for roles in ((Role.DOWN,), (Role.V, Role.DOWN)):
            budget = bits(ir, (Quantize("gptq", _FOUR, _by_hand(ir, roles, False)),))
            yield f"mixed {budget:.2f}", (QuantizeMixed(_OPTIONS, budget),)
    if "curve" in kinds:
        for bpw in _CURVE:
            yield f"exl2 {bpw:g}", (QuantizeExl2(bpw),)


def _by_hand(ir: ModelIR, roles: Sequence[Role], ends: bool) -> tuple[tuple[str, Format], ...]:
    """Matrices at 8 bits: of some roles, or of the first and the last block."""
    out = []
    depth = len(ir.decoder.layers)
    for layer in range(depth):
        for linear in ir.decoder.block(layer).linears:
            if linear.quantizable and (linear.role in roles or (ends and layer in (0, depth - 1))):
                # Engines fuse q, k and v: where v has 8 bits, q and k have them too.
                out.append((ir.decoder.layer_prefix(layer) + linear.name, _EIGHT))
    fused = {Role.Q, Role.K, Role.V}
    if Role.V in roles:
        names = {name for name, _ in out}
        for layer in range(depth):
            for linear in ir.decoder.block(layer).linears:
                name = ir.decoder.layer_prefix(layer) + linear.name
                if linear.role in fused and name not in names:
                    out.append((name, _EIGHT))
    return tuple(out)


def bits(ir: ModelIR, passes: tuple[Pass, ...]) -> float:
    """Bits a weight of the decoder's matrices, all included."""
    [*_, last] = [one for one in passes if one.name.startswith("quantize")]
    if isinstance(last, QuantizeExl2) and last.choices:
        return 8 * resolved_bytes(ir, last.choices) / quantized_weights(ir)
    stored = last.rewrite(ir).decoder
    size = sum(count * sum(lin.bytes for lin in block.linears if lin.quantizable) for block, count in stored.counts)
    return 8 * size / quantized_weights(ir)


def _exl2_bits_of(ir: ModelIR, form: Format) -> float:
    """The bits a weight at which EXL2's matrices take no more bytes than those of `form`."""
    size = bits(ir, (Quantize("gptq", form),)) * quantized_weights(ir) / 8
    bpw = 8 * size / quantized_weights(ir)
    while budget_bytes(ir, bpw) > size:
        bpw -= 0.001
    return round(bpw, 4)


def run(ir: ModelIR, source: Path, label: str, name: str, passes: tuple[Pass, ...]) -> dict[str, Any]:
    """One line of the table."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in f"{label}-{name}")
    record = CACHE / f"allocation-{slug}.json"
    if not record.exists():
        out = CACHE / f"allocation-{slug}"
        job = Job(
            ir, source, passes, out, CACHE / f"allocation-work-{label}", TextSource(PYTHON_REFERENCE, 64, 512),
            TextSource(str(news_file()), 32, 512),
        )  # fmt: skip
        outcome = execute(job)
        seconds = {step.name: step.seconds for step in outcome.steps if step.name in _STEPS}
        record.write_text(
            json.dumps(
                {
                    "bits": bits(ir, outcome.passes), "kl": outcome.measured.kl, "walk": seconds.pop("walk"),
                    "measured": sum(seconds.values()), "peak": max(step.peak_bytes for step in outcome.steps if step.name in _STEPS),
                    "passes": chain.to_json(outcome.passes),
                }
            )
        )  # fmt: skip
        shutil.rmtree(out)
    return dict(json.loads(record.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sources", nargs="+", default=["twin", "grid"], choices=["twin", "grid"])
    kinds = ["exl2", "mixed", "sparse", "awq", "curve"]
    parser.add_argument("--chains", nargs="+", default=kinds, choices=kinds)
    options = parser.parse_args()
    print(
        f"{'source':6} {'chain':26} {'bits':>6} {'KL':>8} {'of gptq':>8} {'walk s':>7} {'measured s':>10} {'peak MiB':>9}"
    )
    for label in options.sources:
        source = degrid(options.model, CACHE / "smollm2-degridded") if label == "twin" else options.model
        ir = open_model(source).ir
        base = None
        for name, passes in chains(ir, options.chains):
            row = run(ir, source, label, name, passes)
            base = base or row["kl"]
            print(
                f"{label:6} {name:26} {row['bits']:6.3f} {row['kl']:8.4f} {row['kl'] / base:8.3f} {row['walk']:7.1f} "
                f"{row['measured']:10.1f} {row['peak'] >> 20:9}",
                flush=True,
            )


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"whole run {time.monotonic() - started:.0f} s")

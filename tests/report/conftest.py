"""What the report's tests share: a plan that was made, a result of it, and a page of both."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from passes.ir.model import DENSE
from planner.certificate import Certificate, Comparison, FinishedStep, MeasuredGoal, MeasuredQuality, PredictedFigures
from planner.choice.goals import Goal
from planner.plan.document import PlanDocument
from planner.plan.make import plan
from planner.plan.saved import save
from planner.quality.expected import Quality
from planner.report.facts import Facts, facts_of
from planner.verifying.report import VerifyReport
from targets.quantity import Basis, Quantity
from targets.serve.load import Load, LoadTiming, Spread
from tests.conftest import missing

SPEC = """\
model: Llama-3.1-8B-Instruct
target: { gpu: 12GB, count: 1 }
engine: vllm
workload: { context: 8192, concurrency: 4, input_tokens: 1000, output_tokens: 200 }
goals: { ttft: 4 s, decode: 8 tok/s, quality: { max_perplexity_increase: 5% }, prefer: quality }
passes: { quantize: { formats: [w4a16-g128, w8a16-channel, awq-4-g128], methods: [gptq, rtn, awq] } }
"""


@pytest.fixture(scope="session")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "l4.yaml").write_text(SPEC)
    save(plan(folder / "l4.yaml").document, folder / "l4.plan.json")
    return folder / "l4.plan.json"


@pytest.fixture(scope="session")
def planned(plan_file: Path) -> Facts:
    return facts_of(plan_file)


@pytest.fixture(scope="session")
def made(planned: Facts) -> Facts:
    """The same with a certificate, as `apply` would have left it."""
    return replace(planned, certificate=certificate_of(planned.plan))


@pytest.fixture(scope="session")
def verified(made: Facts) -> Facts:
    """The same, served under its load."""
    shown = Spread(mean=700.0, median=650.0, p95=900.0, p90=850.0, p99=950.0)
    token = Spread(mean=20.0, median=19.0, p95=25.0, p90=24.0, p99=26.0)
    timing = LoadTiming("vllm bench serve", Load(1000, 200, 4, 40), shown, token, 180.0, 44.0, 0)
    checks = (Comparison("TTFT, ms", "700 (600 … 800)", "700", holds=True, binding=False),)
    return replace(made, verified=VerifyReport(checks, 30.0, "Paris", (timing,), "0.33"))


@pytest.fixture(scope="session")
def mixed(verified: Facts) -> Facts:
    """The same with a first layer that is stored as it was."""
    made = verified
    assert made.ir is not None
    stack = made.ir.decoder
    plain = stack.block(0).map_linears(lambda linear: replace(linear, storage=DENSE))
    layers = stack.with_blocks((plain, *(stack.block(layer) for layer in range(1, len(stack.layers)))))
    stacks = tuple(layers if each.name == "decoder" else each for each in made.ir.stacks)
    return replace(made, ir=replace(made.ir, stacks=stacks))


def certificate_of(document: PlanDocument) -> Certificate:
    chosen = document.decision
    rise = Quantity(0.004, 0.001, 0.007, Basis.MEASURED)
    return Certificate(
        format_version="1",
        model=document.model,
        label=chosen.label,
        plan_digest=document.digest,
        engine=chosen.engine,
        checks=(Comparison("bytes of tensors", "100", "100", holds=True, binding=True),),
        goals=(MeasuredGoal(Goal.PERPLEXITY, 0.05, 0.004, met=True),),
        quality=MeasuredQuality(
            log_ppl_increase=0.004,
            intervals=Quality(rise, rise),
            calibration_digest=None,
            evaluation_digest="0" * 64,
            predicted=chosen.quality,
        ),
        predicted=PredictedFigures(chosen.memory, chosen.kv_cache, chosen.speed),
        tensor_bytes=chosen.tensor_bytes,
        steps=(FinishedStep("walk", 40.0, 50.0, 1 << 30, False), FinishedStep("evaluate", 10.0, None, 1 << 30, True)),
        losses={},
        without_calibration=(),
        holds=True,
    )


@pytest.fixture(scope="session")
def browser_python() -> Path:
    """The Python that has Playwright: TIGHTFIT_BROWSER, as `make test` sets it, else where `make browser` puts it."""
    usual = Path.home() / ".cache" / "tightfit" / "browser" / "bin" / "python"
    python = Path(os.environ.get("TIGHTFIT_BROWSER") or usual).expanduser()
    if not python.exists():
        missing(f"no Playwright at {python}", "`make browser` installs it")
    return python

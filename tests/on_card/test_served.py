"""What vLLM is started on for its speed and memory: config and launch files of every format, as a result of that format has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.on_card import served
from benchmarks.on_card.stages import STAGES
from benchmarks.on_card.staging import Setup
from passes.ir.sources import open_model

CASES = [stage.options for stage in STAGES if stage.function.endswith("served:serve")]


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "installed_gpus", lambda: ("NVIDIA H100 80GB HBM3",))


@pytest.mark.parametrize("asked", CASES, ids=lambda asked: f"{asked['form']}{' fp8' if asked['fp8_cache'] else ''}")
def test_every_format_is_written_as_planned_and_its_cache_predicted(
    asked: dict[str, bool | str], tmp_path: Path
) -> None:
    form, fp8 = str(asked["form"]), bool(asked["fp8_cache"])
    case, folder = served.prepared(Setup(tmp_path), form, "0.26.0", fp8_cache=fp8)
    read = open_model(folder).ir
    assert [b.linears for b, _ in read.decoder.counts] == [b.linears for b, _ in case.target.decoder.counts]
    launch = yaml.safe_load((folder / "launch" / "vllm.yaml").read_text())
    assert launch["load-format"] == "dummy" and launch["max-model-len"] == served.CONTEXT
    assert (launch.get("kv-cache-dtype") == "fp8") == (fp8 and not case.target.kv_cache.scales)
    assert case.target.kv_cache.dtype == ("fp8" if fp8 else "auto")
    assert case.engine.illegal(case.target, case.card, case.settings) == ()
    tokens = served.kv_estimate(case).tokens
    assert tokens.low <= tokens.value <= tokens.high and tokens.value > (900_000 if fp8 else 400_000)

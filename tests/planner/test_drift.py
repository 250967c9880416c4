"""A plan under other versions of its engine: figures are those of `memory` there, and unknown versions say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from passes.errors import InputError
from planner.explain.drift import DriftDocument, drift
from planner.plan.make import plan
from planner.plan.opened import Opened, opened
from planner.plan.saved import save
from planner.spec.parse import parse_spec
from targets.engines.engine import find_engine

_SPEC = """
model: Qwen/Qwen2.5-7B-Instruct
target: { gpu: rtx-4090 }
engine: { name: vllm, version: "0.19" }
workload: { context: 8192, concurrency: 4 }
passes: { quantize: forbid, kv_cache: [auto] }
"""


def saved(tmp_path: Path, spec: str = _SPEC) -> Opened:
    save(plan(parse_spec(spec)).document, tmp_path / "a.plan.json")
    return opened(tmp_path / "a.plan.json")


@pytest.fixture
def made(tmp_path: Path) -> Opened:
    return saved(tmp_path)


def named(document: DriftDocument, what: str) -> Any:
    return next(change for change in document.versions[0].changes if change.what == what)


def test_the_plans_own_version_changes_nothing_and_has_the_plans_figures(made: Opened) -> None:
    document = drift(made, ["0.19"])
    assert document.versions[0].changes == () and document.fits
    assert document.planned.figure("KV tokens").value == made.document.decision.kv_cache.tokens


def test_requests_shorter_than_the_context_are_counted_as_the_plan_counted_them(tmp_path: Path) -> None:
    """Sixteen requests of 1,200 tokens fit a cache that holds no two of the whole context."""
    load = "{ context: 32768, concurrency: 16, input_tokens: 1000, output_tokens: 200 }"
    spec = _SPEC.replace("{ context: 8192, concurrency: 4 }", load)
    document = drift(saved(tmp_path, spec), ["0.19"])
    assert document.planned.figure("requests at full context").value.value < 16
    assert document.planned.fits and document.fits and document.versions[0].refused == ()


def test_an_upgrade_changes_the_share_the_graphs_and_the_runner(made: Opened) -> None:
    """0.20 raised the default share to 0.92 and takes graphs from the cache's memory; V2 runs dense models from 0.25."""
    document = drift(made, ["0.29"])
    share = named(document, "gpu_memory_utilization")
    assert (share.planned, share.there) == (0.9, 0.92) and share.share == pytest.approx(0.92 / 0.9 - 1)
    assert named(document, "memory of graphs").there == "taken from the cache's"
    assert named(document, "engine").there == "V1, runner V2"
    tokens = named(document, "KV tokens")
    assert tokens.share == pytest.approx(tokens.there / tokens.planned - 1)


def test_all_is_every_version_that_is_known(made: Opened) -> None:
    assert [each.version for each in drift(made).versions] == list(find_engine("vllm").known_versions())


def test_a_version_that_is_not_known_yet_says_so(made: Opened) -> None:
    [there] = drift(made, ["0.99"]).versions
    assert not there.known and any("newer than" in note for note in there.notes)
    assert (drift(made, ["0.99"]).exit_code, drift(made, ["0.29"]).exit_code) == (6, 0)


def test_the_newest_behaviour_holds_for_every_later_version(tmp_path: Path) -> None:
    """No fact of an engine ends at a number that a version may reach."""
    fp8 = _SPEC.replace("kv_cache: [auto]", "kv_cache: [fp8]")
    [there] = drift(saved(tmp_path, fp8), ["99.1"]).versions
    assert there.refused == () and any("99.1" in note for note in there.notes)


def test_a_format_that_a_version_refuses_is_told(tmp_path: Path) -> None:
    """Groups in activation order are refused from 0.30 on; FP8 made while loading has another name from 0.31 on."""
    spec = (
        _SPEC.replace("quantize: forbid", "quantize: { formats: [nvfp4] }")
        .replace("rtx-4090", "rtx-5090")
        .replace('"0.19"', '"0.33"')
    )
    document = drift(saved(tmp_path, spec), ["0.6"])
    assert document.versions[0].refused and not document.fits


def test_what_is_no_version_is_refused(made: Opened) -> None:
    with pytest.raises(InputError, match="not an engine version"):
        drift(made, ["newest"])


def test_a_result_drifts_as_its_plan_does(made: Opened, tmp_path: Path) -> None:
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made.ir.config))
    save(made.document, folder / "plan.json")
    result = drift(opened(folder), ["0.29"])
    assert result.versions[0].figure("KV tokens") == drift(made, ["0.29"]).versions[0].figure("KV tokens")


def test_the_command_prints_a_table_or_json_and_exits_3_where_the_plan_breaks(
    made: Opened, tmp_path: Path, optimize: Any
) -> None:
    path = tmp_path / "a.plan.json"
    code, out, _ = optimize("drift", path, "--engine-version", "0.29")
    assert code == 0 and "KV tokens" in out and "0.9 → 0.92" in out
    code, out, _ = optimize("drift", path, "--engine-version", "0.99")
    assert code == 6 and "vllm 0.99: not known" in out and "holds" not in out
    code, out, _ = optimize("drift", path, "--all")
    assert code == 0 and len([line for line in out.splitlines() if line.startswith("  0.")]) == len(
        find_engine("vllm").known_versions()
    )
    code, out, _ = optimize("drift", path, "--engine-version", "0.29", "--json")
    assert code == 0 and json.loads(out)["versions"][0]["version"] == "0.29"
    assert optimize("drift", path)[0] == 2 and optimize("drift", path, "--all", "--engine-version", "0.29")[0] == 2


def test_a_load_that_the_plan_holds_is_not_refused_for_its_longest_context(tmp_path: Path) -> None:
    """50 requests of 1,200 tokens are held, 50 of the whole context would not be: drift asks for what the plan counted."""
    text = "workload: { context: 4096, concurrency: 50, input_tokens: 1000, output_tokens: 200 }"
    spec = _SPEC.replace("workload: { context: 8192, concurrency: 4 }", text).replace("rtx-4090", "l4")
    document = drift(saved(tmp_path, spec), ["0.19", "0.29"])
    assert document.planned.figure("requests at full context").value.value < 50
    assert document.planned.fits and document.fits

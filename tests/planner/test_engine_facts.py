"""What is true of an engine stands with the engine: the planner names none, and asks each the same questions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import planner
from passes.ir.sources import open_model
from passes.quantize.format_names import pass_named
from planner.choice.demand import workload_of
from planner.plan.codec import from_json, to_json
from planner.plan.launch import launch_request
from planner.plan.make import plan
from planner.plan.parts.chosen import PlannedSettings, planned_settings
from planner.spec.parse import parse_spec
from targets.engines.engine import ENGINE_NAMES, Engine, Parallel, Settings, find_engine
from targets.engines.vllm.engine import Vllm
from targets.gpu import find_gpu
from targets.serve.drive import ServerVerifier
from targets.workload import Workload

#: Where people's words are read or written: the written spec, examples of its keys, help of `check` and its errors, examples of questions.
_WORDS = {
    "spec/template.py": 1, "cli/checking.py": 2, "checking/subject.py": 1, "explain/answer.py": 3,
}  # fmt: skip


def _names_of_engines(file: Path) -> int:
    """Strings and imports of a module that name an engine, its docstrings left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in prose]
    return sum(bool(re.search("vllm|exllama", text)) for text in (*imported, *strings) if isinstance(text, str))


def test_the_planner_names_no_engine() -> None:
    root = Path(planner.__file__).parent
    named = {str(file.relative_to(root)): _names_of_engines(file) for file in root.rglob("*.py")}
    assert {name: count for name, count in named.items() if count} == _WORDS


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_what_an_engine_says_is_known_elsewhere(name: str) -> None:
    engine = find_engine(name)
    assert engine.name == name and engine.kv_dtypes[0] == "auto"
    assert all(pass_named(form) is not None for form in engine.weighed_formats)
    width = engine.any_width
    assert width is None or pass_named(f"{width.kind}-{width.high:g}") is not None


def test_auto_weighs_the_engines_of_the_card_whose_speed_was_measured() -> None:
    card, processor = find_gpu("RTX 4090"), find_gpu("cpu")
    assert [name for name in ENGINE_NAMES if find_engine(name).weighed_on(card)] == ["vllm", "exllamav2"]
    assert [name for name in ENGINE_NAMES if find_engine(name).weighed_on(processor)] == ["vllm-cpu"]


def test_engines_split_a_model_over_cards_in_their_own_ways() -> None:
    assert list(find_engine("vllm").spreads(4)) == [Parallel(4, 1), Parallel(2, 2), Parallel(1, 4)]
    assert list(find_engine("vllm-cpu").spreads(4)) == [Parallel(4)]
    assert list(find_engine("exllamav2").spreads(4)) == [Parallel(4), Parallel(1, 4)]


def test_exllamav2_cuts_no_experts_over_cards_and_runs_one_request_below_ampere() -> None:
    engine, ir = find_engine("exllamav2"), open_model("mistralai/Mixtral-8x7B-Instruct-v0.1").ir
    card, old = find_gpu("RTX 3090"), find_gpu("T4")
    cut = [reason.code for reason in engine.illegal(ir, card, Settings(parallel=Parallel(2)))]
    laid = [reason.code for reason in engine.illegal(ir, card, Settings(parallel=Parallel(1, 2)))]
    assert "tensor_parallel_not_in_exllamav2" in cut and "tensor_parallel_not_in_exllamav2" not in laid
    assert engine.scheduler(old, Settings(), Workload(4096, 3)).sequences == 1
    assert engine.scheduler(card, Settings(), Workload(4096, 3)).sequences == 3


@pytest.mark.parametrize("name", ENGINE_NAMES)
@pytest.mark.parametrize("card", ["T4", "RTX 3090", "H100", "cpu"])
def test_the_most_that_an_engine_runs_at_once_is_what_it_runs_of_a_crowd(name: str, card: str) -> None:
    """Without an asking for more clients than there are: what is set, the engine's own default, or as many as come."""
    engine, gpu = find_engine(name), find_gpu(card)
    for settings in (Settings(), Settings(max_num_seqs=8)):
        crowd = engine.scheduler(gpu, settings, Workload(4096, 1 << 20)).sequences
        assert (engine.most_sequences(gpu, settings) or 1 << 20) == crowd


def test_a_server_s_log_tells_its_cache() -> None:
    server = find_engine("vllm").server
    assert server is not None
    log = "GPU KV cache size: 46,592 tokens, Maximum concurrency for 2,048 tokens per request: 22.75x"
    assert (server.kv_tokens(log), server.max_concurrency(log)) == (46_592, 22.75)
    assert server.kv_tokens("GPU KV cache size: 46,592 tokens") == 46_592
    assert (server.kv_tokens("ready"), server.max_concurrency("ready")) == (None, None)
    on_two_lines = "GPU KV cache size: 46,592 tokens\nMaximum concurrency for 2,048 tokens per request: 22.75x"
    assert server.max_concurrency(on_two_lines) == 22.75
    assert find_engine("exllamav2").server is None


def test_every_engine_of_ours_is_driven_and_one_that_serves_elsewhere_by_its_log() -> None:
    assert all(find_engine(name).verifier() is not None for name in ENGINE_NAMES)

    class Other(Vllm):
        verifier = Engine.verifier

    class Mute(Other):
        server = None

    assert isinstance(Other().verifier(), ServerVerifier) and Mute().verifier() is None


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings("0.31", Parallel(2, 3, 4, 5), 0.9, 8, 2048, enforce_eager=True, block_size=32, kv_cache_memory_bytes=1 << 30),
    ],
)  # fmt: skip
def test_settings_are_read_back_from_a_plan(settings: Settings) -> None:
    assert from_json(PlannedSettings, to_json(planned_settings(settings)), "it").settings == settings


def test_a_plan_says_what_its_launch_files_need() -> None:
    spec = parse_spec(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090, count: 2 }\nengine: { name: vllm, version: '0.31' }\n"
        "workload: { context: 4096, concurrency: 3 }\ntrust_remote_code: true\n"
    )
    made = plan(spec)
    chosen = made.result.chosen
    assert chosen is not None
    request = launch_request(made.document, chosen.ir, "small")
    assert (request.engine, request.version, request.label) == ("vllm", "0.31", chosen.candidate.label)
    assert request.settings == chosen.candidate.settings and request.trust_remote_code
    assert request.workload == workload_of(spec) and request.served_name == "small"
    assert request.kv_cache_bytes == round(chosen.memory.memory.kv_cache.value)

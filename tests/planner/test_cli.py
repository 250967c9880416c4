"""The command line's contract: exit codes, one JSON document, one message for a user's mistake, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.cli.tables.page import filled

ROOT = Path(__file__).resolve().parents[2]
Q = {"value", "low", "high", "basis"}


def test_check_answers_the_contract(optimize: Any) -> None:
    code, out, _ = optimize(
        "check", "--model", "Llama-3.1-8B-Instruct", "--gpu", "RTX 4090", "--context", 4096, "--json"
    )
    document = json.loads(out)
    assert code == 0
    assert document["fits"] and document["starts"] and document["serves"]
    assert set(document["margin"]) == Q
    assert set(document["memory"]) >= {
        "weights",
        "kv_cache",
        "activations",
        "non_torch",
        "cuda_graphs",
        "total",
        "budget",
    }
    assert set(document["kv_cache"]) == {
        "bytes_per_token",
        "bytes_per_sequence",
        "tokens",
        "max_concurrency",
        "max_context",
    }
    assert document["kv_cache"]["bytes_per_token"] == 131072
    assert set(document["speed"]) >= {
        "ttft_ms",
        "tpot_ms",
        "prefill_tok_s",
        "decode_tok_s_per_request",
        "throughput_tok_s",
    }
    assert set(document["quality"]) == {"log_ppl_increase", "kl"}


def test_errors_are_filled_to_the_width_of_the_terminal(optimize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    code, _, err = optimize("check", "--model", "llama-3.1-8bb", "--gpu", "24GB")
    assert code == 2 and "Did you mean" in err
    assert max(map(len, err.splitlines())) <= 60
    monkeypatch.delenv("COLUMNS")
    assert optimize("check", "--model", "llama-3.1-8bb", "--gpu", "24GB")[2].split() == err.split()


def test_paths_and_lines_of_an_error_stay_whole() -> None:
    path = "/a/folder/that-is-longer/than-the-terminal-is-wide.yaml"
    told = filled(f"error: no spec at {path}\n  `optimize init` writes one to start from", 40)
    assert told.splitlines() == ["error: no spec at", f"  {path}", "  `optimize init` writes one to start", "    from"]
    assert filled(path, None) == path


def test_check_prints_its_document_also_when_it_does_not_fit(optimize: Any) -> None:
    code, out, _ = optimize("check", "--model", "Llama-3.3-70B-Instruct", "--gpu", "H100", "--context", 8192, "--json")
    document = json.loads(out)
    assert code == 3
    assert not document["fits"]
    assert document["reasons"][0]["code"] == "weights_do_not_fit"
    assert {"weights", "gpus"} & {r["knob"] for r in document["remedies"]}


def test_an_illegal_combination_is_a_reason_and_sizes_are_answered(optimize: Any) -> None:
    code, out, _ = optimize(
        "check", "--model", "SmolLM2-135M-Instruct", "--gpu", "T4", "--weights", "w4a16-g128", "--json"
    )
    document = json.loads(out)
    assert code == 3
    assert "group_size_128_does_not_divide_576" in {r["code"] for r in document["reasons"]}
    assert document["memory"]["weights"]["value"] > 0
    assert document["quality"]["log_ppl_increase"]["value"] > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["check", "--model", "no-such-model", "--gpu", "RTX 4090"], "unknown model"),
        (["check", "--model", "Llama-3.1-8B-Instruct", "--gpu", "RTX 4099"], "RTX 4090"),
        (
            ["check", "--model", "Llama-3.1-8B-Instruct", "--gpu", "T4", "--weights", "w4a16-g12x"],
            "unknown weight format",
        ),
        (["check", "--model", "Llama-3.1-8B-Instruct", "--gpu", "T4", "--engine", "vlm"], "vllm"),
        (["check", "--model", "Llama-3.1-8B-Instruct", "--gpu", "T4", "--engine-version", "new"], "0.19.1"),
        (["plan", "none.yaml"], "optimize init"),
        (["apply", "none.plan.json"], "optimize plan"),
        (["show", "none.plan.json"], "optimize plan"),
        (["verify", "none"], "optimize apply"),
        (["check", "--gpu", "T4"], "--model"),
        (["chek"], "check"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_two(optimize: Any, args: list[str], says: str) -> None:
    code, out, err = optimize(*args)
    assert code == 2
    assert says in err
    assert "Traceback" not in err + out


def test_with_json_an_error_is_a_document_too(optimize: Any, tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text("model: x\ntarget: { gpu: a, coun: 1 }\n")
    code, out, err = optimize("plan", spec, "--json")
    error = json.loads(out)["error"]
    assert code == 2
    assert (error["location"]["line"], error["location"]["column"]) == (2, 19)
    assert "count" in error["message"] and "coun" in err


def test_init_writes_a_spec_that_plans_and_never_overwrites(optimize: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert optimize("init", path)[0] == 0
    before = path.read_text()
    assert optimize("init", path)[0] == 2
    assert path.read_text() == before
    assert optimize("plan", path, "-o", tmp_path / "p.json")[0] == 0


def test_the_70b_example_answers_that_nothing_fits_yet(optimize: Any, tmp_path: Path) -> None:
    code, out, _ = optimize("plan", ROOT / "examples/llama-3.3-70b-rtx4090.yaml", "-o", tmp_path / "p.json", "--json")
    document = json.loads(out)
    assert code == 3
    assert document["chosen"] is None
    assert all(r["reasons"] for r in document["rejected"])
    assert not (tmp_path / "p.json").exists()


def test_planning_is_light() -> None:
    """What takes long to import is not imported; `benchmarks/plan_speed.py` measures the seconds."""
    script = (
        "import sys; sys.argv = ['optimize', 'plan', 'examples/llama-3.3-70b-rtx4090.yaml', '--json']\n"
        "from planner.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'scipy', 'datasets', 'jinja2', 'ray', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rejected"], "it planned"
    assert done.stderr.strip().endswith("[]"), done.stderr


@pytest.mark.parametrize("damage", ["truncated", "lying"])
def test_a_damaged_model_is_refused_and_left_alone(optimize: Any, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 64, "tie_word_embeddings": True,
    }))  # fmt: skip
    header = json.dumps(
        {"a": {"dtype": "BF16", "shape": [10], "data_offsets": [0, 20 if damage == "truncated" else 999]}}
    ).encode()
    body = len(header).to_bytes(8, "little") + header + b"\0" * (3 if damage == "truncated" else 20)
    (folder / "model.safetensors").write_bytes(body)
    code, _, err = optimize("check", "--model", folder, "--gpu", "RTX 4090")
    assert code == 2
    assert "model.safetensors" in err and "Traceback" not in err
    assert (folder / "model.safetensors").read_bytes() == body
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_an_unknown_architecture_fails_closed(optimize: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["NovelForCausalLM"], "model_type": "novel", "hidden_size": 64})
    )
    code, _, err = optimize("check", "--model", tmp_path, "--gpu", "RTX 4090")
    assert code == 2
    assert "novel" in err.lower() and "Traceback" not in err


def test_no_command_writes_over_what_it_reads(optimize: Any, tmp_path: Path) -> None:
    spec, plan = tmp_path / "a.yaml", tmp_path / "a.plan.json"
    spec.write_text("model: llama-3.1-8b\ntarget: { gpu: rtx-4090 }\npasses: { quantize: forbid }\n")
    assert optimize("plan", spec, "-o", plan)[0] == 0
    before = spec.read_bytes(), plan.read_bytes()
    for command in (
        ("plan", spec, "-o", spec),
        ("report", plan, "-o", plan),
        ("launch", plan, "--target", "compose", "-o", plan),
    ):
        code, _, err = optimize(*command)
        assert code == 2 and "would be lost" in err
    assert before == (spec.read_bytes(), plan.read_bytes())


def test_a_spec_where_a_plan_is_asked_for_is_called_that(optimize: Any, tmp_path: Path) -> None:
    spec = tmp_path / "a.yaml"
    spec.write_text("model: llama-3.1-8b\ntarget: { gpu: rtx-4090 }\n")
    for command in (("launch", spec, "--target", "compose"), ("drift", spec, "--all")):
        code, _, err = optimize(*command)
        said = " ".join(err.split())
        assert code == 2 and "is a spec, no plan" in said and "optimize plan" in said and "JSON" not in said


def test_a_result_is_read_on_sixty_columns_with_no_name_or_figure_cut(
    optimize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ROOT / "tests" / "planner" / "data" / "2026-11-23"
    monkeypatch.setenv("COLUMNS", "60")
    shown = optimize("show", result)[1]
    assert max(map(len, shown.splitlines())) <= 60
    for check in json.loads((result / "certificate.json").read_text())["checks"]:
        for said in (check["name"], check["predicted"], check["measured"]):
            assert " ".join(said.split()) in " ".join(shown.split())
    assert "; measured" in shown and "asked ≤" in shown

"""Outside tools: what each makes, what is refused before any work, and how its words are read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from passes.backends.backend import Task
from passes.backends.libraries import Library
from passes.backends.result import described, write_shards
from passes.backends.run import backend_python, run
from passes.base import Pass
from passes.chain import BACKENDS, draw, find_backend, from_json, illegal, to_json
from passes.errors import DoesNotFitError, InputError, TightfitError
from passes.files.checkpoint import Checkpoint
from passes.formats.gptq import Gptq
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.sparse import Sparsify
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.format_names import pass_named
from passes.quantize.quantize import Quantize
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import TextSource
from planner.choice.search import search
from planner.choice.space.chains import as_asked
from planner.spec.parse import parse_spec
from planner.spec.parts.choices import QuantizeChoice
from tests.walk.conftest import save_tiny_llama


def by(backend: str, scheme: str) -> Pass:
    parsed = pass_named(scheme)
    assert parsed is not None
    return as_asked(QuantizeChoice(backend=backend), parsed)


@pytest.mark.parametrize(
    ("backend", "scheme", "options"),
    [
        ("gptqmodel", "gptq-4-g128", {"bits": 4, "group_size": 128, "sym": True, "desc_act": False, "damp_percent": 0.01, "method": "gptq",
                                      "format": "gptq"}),
        ("gptqmodel", "gptq-4-g128-asym-act-v2", {"bits": 4, "group_size": 128, "sym": False, "desc_act": True, "damp_percent": 0.01,
                                                  "method": "gptq", "format": "gptq_v2"}),
        ("gptqmodel", "awq-4-g64", {"bits": 4, "group_size": 64, "method": "awq", "format": "gemm", "sym": False}),
        ("autoround", "autoround-4-g64", {"bits": 4, "group_size": 64, "sym": True, "format": "auto_gptq"}),
        ("exllamav2", "exl2-4.65", {"bits": 4.65, "head_bits": 6}),
        ("exllamav3", "exl3-3.5-h8", {"bits": 3.5, "head_bits": 8}),
    ],
)  # fmt: skip
def test_a_pass_in_the_words_of_its_tool(backend: str, scheme: str, options: dict[str, Any]) -> None:
    one = by(backend, scheme)
    assert one.backend == backend
    assert find_backend(backend).refuses(one) is None
    assert find_backend(backend).options(one) == options


def test_llm_compressor_gets_a_compressed_tensors_scheme() -> None:
    options = find_backend("llmcompressor").options(by("llmcompressor", "w4a16-g64"))
    assert options["method"] == "gptq"
    assert options["group"]["targets"] == ["Linear"]
    assert options["group"]["weights"]["num_bits"] == 4 and options["group"]["weights"]["group_size"] == 64


@pytest.mark.parametrize(
    ("backend", "scheme", "says"),
    [
        ("gptqmodel", "w4a16-g64", "gptq as w4a16-g64"),
        ("llmcompressor", "gptq-4-g128", "gptq as gptq-4-g128"),
        ("autoround", "gptq-4-g128", "the method gptq"),
        ("exllamav2", "gptq-4-g128", "makes EXL2"),
        ("exllamav3", "exl2-4.0", "makes EXL3"),
        ("gptqmodel", "exl2-4.0", "exl2"),
    ],
)
def test_what_a_tool_does_not_make_is_refused_with_a_way_out(backend: str, scheme: str, says: str) -> None:
    [reason] = illegal(open_model("llama-3.1-8b").ir, (by(backend, scheme),))
    assert reason.code == "backend_cannot"
    assert says in reason.message and reason.remedy


def test_a_plan_for_a_tool_holds_only_what_it_makes() -> None:
    text = "model: llama-3.1-8b\ntarget: {gpu: rtx-4090}\nengine: vllm\nworkload: {context: 8192, concurrency: 1}\n"
    spec = parse_spec(text + "passes: {quantize: {backend: gptqmodel, dense: false}}\n")
    found = search(spec, open_model(spec.model).ir)
    assert found.chosen is not None
    [made] = [one for one in found.chosen.candidate.passes if one.name == "quantize"]
    assert made.backend == "gptqmodel" and find_backend("gptqmodel").refuses(made) is None
    assert any(reason.code == "backend_cannot" for verdict in found.rejected for reason in verdict.reasons)


def test_tools_take_no_part_in_what_only_the_walk_does() -> None:
    ir = open_model("llama-3.1-8b").ir
    one = by("llmcompressor", "w4a16-g128")
    assert illegal(ir, (Sparsify("wanda", 0.5, "2:4"), one))[0].code == "backend_drops_zeros"
    assert illegal(ir, (one, KVCachePass("fp8", scales=True)))[0].code == "backend_no_kv_scales"
    assert illegal(ir, (one, KVCachePass("fp8"))) == ()


def test_a_chain_with_a_tool_reads_back_and_says_who_makes_it() -> None:
    chain = (by("gptqmodel", "gptq-4-g128"),)
    assert from_json(to_json(chain)) == chain
    assert "by gptqmodel" in draw(chain)


def test_what_exllamav2_chose_is_taken_over(tmp_path: Path) -> None:
    """The converter's folder is played by an EXL2 checkpoint of our own: the planned bytes bound it, its headers say what it is."""
    model, text = save_tiny_llama(tmp_path / "model", dtype=torch.float16), TextSource("python-reference", 8, 64)
    ir = open_model(model).ir
    execute(Job(ir, model, (QuantizeExl2(5.5),), tmp_path / "made", tmp_path / "work", text, TextSource("self", 2, 64)))
    planned = QuantizeExl2(5.5, backend="exllamav2").rewrite(ir)
    found = described(planned, tmp_path / "made")
    assert 0 < found.tensor_bytes <= planned.tensor_bytes
    write_shards(found, tmp_path / "made", tmp_path / "shards")
    stored = set(Checkpoint(tmp_path / "shards").describe())
    assert stored == {tensor for tensor in found.tensors() if tensor.name not in set(found.outer_names())}


def test_unknown_tools_are_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match="gptqmodel"):
        find_backend("gptq-model")


def test_a_tool_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = find_backend("exllamav3")
    monkeypatch.delenv(tool.variable, raising=False)
    with pytest.raises(InputError, match="no exllamav3") as error:
        backend_python(tool)
    assert tool.variable in str(error.value.remedy)
    monkeypatch.setenv(tool.variable, "/nowhere/python")
    with pytest.raises(InputError, match="no Python at"):
        backend_python(tool)


@pytest.mark.parametrize(
    ("backend", "line", "progress"),
    [
        ("exllamav2", '[STATUS]{"stage": "Measuring", "completion": 0.25}[/STATUS]', (2500, 10_000)),
        ("exllamav2", " -- Layer: model.layers.0 (Attention)", None),
        ("exllamav3", " -- Quantized: model.layers.7.self_attn.q_proj    bpw:  4.00  rfn: 0.01", (8, 0)),
        ("llmcompressor", "(3/31): Calibrating: 100%|####| 16/16", (3, 31)),
        ("autoround", "Quantizing model.layers.3:  10%|#  | 3/30 [00:10<01:30]", (3, 30)),
    ],
)
def test_progress_is_read_from_what_tools_print(backend: str, line: str, progress: tuple[int, int] | None) -> None:
    assert find_backend(backend).progress(line) == progress


def task(tmp_path: Path, one: Pass) -> Task:
    return Task(one, tmp_path / "model", tmp_path / "tokens.safetensors", 16, 128, tmp_path / "work")


def test_exllamav3_resumes_where_its_scratch_folder_has_a_checkpoint(tmp_path: Path) -> None:
    job = task(tmp_path, by("exllamav3", "exl3-4.0"))
    tool = find_backend("exllamav3")
    assert "-r" not in tool.command(Path("python"), job)
    (job.scratch / "ckpt").mkdir(parents=True)
    (job.scratch / "ckpt" / "job.json").write_text("{}")
    assert "-r" in tool.command(Path("python"), job)


class _Stand(Library):
    """A library whose driver is a line of Python: what `run` does with a tool's output and end, without the tool."""

    name, package, module, versions = "stand", "pip", "pip", ""
    makes: ClassVar = {"gptq": (Gptq,)}
    pattern = __import__("re").compile(r"(\d+) of (\d+)")

    def __init__(self, code: str) -> None:
        self.code = code

    def needs_cuda(self, one: Pass) -> bool:
        return False

    def options(self, one: Pass) -> dict[str, Any]:
        return {}

    def command(self, python: Path, job: Task) -> list[str]:
        return [str(python), "-c", self.code, str(job.out)]


def test_output_is_read_as_it_comes_and_kept(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    code = "import os, sys; print('1 of 3\\r2 of 3', end='\\r'); print('3 of 3'); os.makedirs(sys.argv[1])"
    job = task(tmp_path, Quantize("gptq", Gptq()))
    run(_Stand(code), Path(sys.executable), job, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert "3 of 3" in (job.work / "log.txt").read_text()


@pytest.mark.parametrize(("cards", "seen"), [(None, "2,3"), ("", ""), ("3", "3")])
def test_a_tool_sees_the_cards_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cards: str | None, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    code = "import os, sys; os.makedirs(sys.argv[1]); print('sees <' + os.environ['CUDA_VISIBLE_DEVICES'] + '>')"
    job = replace(task(tmp_path, Quantize("gptq", Gptq())), cards=cards)
    run(_Stand(code), Path(sys.executable), job, lambda done, total: None)
    assert f"sees <{seen}>" in (job.work / "log.txt").read_text()


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("raise ValueError('no such group')", TightfitError, "no such group"),
        (
            "print('torch.OutOfMemoryError: CUDA out of memory'); raise SystemExit(1)",
            DoesNotFitError,
            "ran out of memory",
        ),
        ("pass", TightfitError, "left no checkpoint"),
    ],
)
def test_a_failure_is_explained_by_the_end_of_the_log(
    tmp_path: Path, code: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        run(_Stand(code), Path(sys.executable), task(tmp_path, Quantize("gptq", Gptq())), lambda done, total: None)


def test_a_card_is_asked_for_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NVIDIA card only"):
        run(
            find_backend("exllamav2"),
            Path(sys.executable),
            task(tmp_path, by("exllamav2", "exl2-4.0")),
            lambda done, total: None,
        )
    assert not (tmp_path / "work").exists()


def test_every_driver_compiles_and_imports_nothing_of_ours() -> None:
    for name in BACKENDS.names():
        tool = find_backend(name)
        if isinstance(tool, Library):
            driver = Path(tool.command(Path("python"), task(Path("/"), Quantize("gptq", Gptq())))[1])
            assert driver.stem == name
            text = driver.read_text()
            compile(text, str(driver), "exec")
            assert "import passes" not in text and "from passes" not in text
            assert subprocess.run([sys.executable, "-m", "py_compile", str(driver)], check=False).returncode == 0

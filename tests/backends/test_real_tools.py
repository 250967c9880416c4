"""The real tools: a whole `apply` through each that runs on a processor, the others' own parsers and schemas on our arguments."""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from passes.backends.backend import Task
from passes.base import Pass
from passes.chain import find_backend
from passes.formats.at_load import resident
from passes.formats.format import Format
from passes.ir.sources import open_model
from passes.prune.depth import DepthPrune
from passes.quantize.format_names import pass_named
from passes.quantize.quantize import Quantize
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import TextSource
from planner.choice.space.chains import as_asked
from planner.spec.parts.choices import QuantizeChoice
from targets.engines.exllama.v2 import ExllamaV2
from targets.engines.exllama.verify import DRIVER
from tests.backends.conftest import environment
from tests.walk.conftest import save_family, save_tiny_llama

pytestmark = pytest.mark.slow


def chain(tool: str, scheme: str) -> Pass:
    parsed = pass_named(scheme)
    assert parsed is not None
    return as_asked(QuantizeChoice(backend=tool), parsed)


@pytest.mark.parametrize(
    ("tool", "schemes"),
    [
        ("llmcompressor", ("w4a16-g32", "w4a16-g32-asym", "w8a8", "fp8")),
        ("gptqmodel", ("gptq-4-g32",)),
        ("autoround", ("autoround-4-g32",)),
    ],
    indirect=["tool"],
)
def test_what_a_tool_leaves_is_what_the_plan_says(
    tool: str, schemes: tuple[str, ...], small: Path, tmp_path: Path
) -> None:
    ir = open_model(small).ir
    for scheme in schemes:
        one, out = chain(tool, scheme), tmp_path / scheme
        text = TextSource("python-reference", 16, 64)
        found = execute(Job(ir, small, (one,), out, tmp_path / "work", text, TextSource("self", 2, 64)))
        assert found.measured is not None and 0 <= found.measured.kl < 2
        assert any(step.name.startswith(f"{tool} ") for step in found.steps), "the certificate names the tool's version"
        assert open_model(out).ir.quant_method is not None
        again = execute(Job(ir, small, (one,), out, tmp_path / "work", text, TextSource("self", 2, 64)))
        assert all(step.reused for step in again.steps)


@pytest.mark.parametrize("tool", ["gptqmodel"], indirect=True)
def test_biases_stay_as_the_plan_has_them(tool: str, tmp_path: Path) -> None:
    """GPTQModel leaves them in fp16, whatever the model has; the result is as good as the walk's, or nearly."""
    model = save_family("qwen2", tmp_path / "model")
    text, judging = TextSource("python-reference", 16, 64), TextSource("self", 2, 64)
    divergence = []
    for maker in (tool, "native"):
        one, out = chain(maker, "gptq-4-g32"), tmp_path / maker
        found = execute(Job(open_model(model).ir, model, (one,), out, tmp_path / "work", text, judging))
        assert found.measured is not None
        divergence.append(found.measured.kl)
    assert divergence[0] < 1.5 * divergence[1]


@pytest.mark.parametrize("tool", ["llmcompressor"], indirect=True)
def test_a_tool_works_on_what_the_prunings_left(tool: str, tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "model", blocks=3, dtype=torch.bfloat16)
    passes = (DepthPrune(1, (1,)), chain(tool, "w4a16-g32"))
    text, judging = TextSource("python-reference", 8, 64), TextSource("self", 2, 64)
    job = Job(open_model(model).ir, model, passes, tmp_path / "out", tmp_path / "work", text, judging)
    assert len(execute(job).target.decoder.layers) == 2


@cache
def folder_of(package: str) -> Path:
    """Where a package is installed in the tools' environment, found without importing it: that would compile its extension."""
    code = f"import importlib.util as u; print(u.find_spec({package!r}).submodule_search_locations[0])"
    found = subprocess.run([str(environment("tools")), "-c", code], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


def parser_of(module: str, package: str) -> argparse.ArgumentParser:
    """The argument parser that a converter's module builds, without the rest of it, which needs a card."""
    path = folder_of(package).parent / Path(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text())
    kept = [node for node in tree.body if ast.unparse(node).startswith(("parser", "group.add_argument", "group ="))]
    space: dict[str, object] = {"argparse": argparse}
    exec(compile(ast.Module(kept, []), str(path), "exec"), space)
    parser = space["parser"]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


@pytest.mark.parametrize(("backend", "scheme"), [("exllamav2", "exl2-4.65-h8"), ("exllamav3", "exl3-3.5")])
def test_converters_take_our_arguments(backend: str, scheme: str, tmp_path: Path) -> None:
    tool = find_backend(backend)
    task = Task(chain(backend, scheme), tmp_path / "model", tmp_path / "tokens.safetensors", 64, 512, tmp_path / "work")
    _, flag, module, *arguments = tool.command(Path("python"), task)
    assert flag == "-m"
    found = parser_of(module, backend).parse_args(arguments)
    assert (found.bits, Path(found.in_dir)) == (tool.options(task.pass_)["bits"], task.source)
    if backend == "exllamav2":
        assert (found.head_bits, found.dataset_rows, found.length, Path(found.compile_full)) == (8, 64, 512, task.out)
        assert found.status_output
    else:
        assert (found.head_bits, found.cal_rows, found.cal_cols, Path(found.cal_data)) == (6, 64, 512, task.tokens)


def test_exllamav2_reads_the_text_that_calibrates(small: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    tokens = tmp_path / "tokens.safetensors"
    save_file({"input_ids": torch.arange(100, 148).reshape(2, 24)}, tokens)
    task = Task(chain("exllamav2", "exl2-4.0"), small, tokens, 2, 24, tmp_path / "work")
    task.work.mkdir()
    find_backend("exllamav2").prepare(task)
    [file] = task.work.glob("*.parquet")
    assert pyarrow.parquet.read_table(file).num_rows == 2


#: Options as GPTQModel's own config takes them, and of results of the walk the weights that GPTQModel computes with.
_ASKED_OF_GPTQMODEL = """
import json, sys
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.quantization import FORMAT, METHOD
from safetensors.torch import save_file
for options in json.loads(sys.argv[1]):
    method, form = METHOD(options.pop("method")), FORMAT(options.pop("format"))
    found = QuantizeConfig(**options, method=method, format=form)
    print("FOUND", found.bits, found.group_size, found.sym)
for folder in sys.argv[2:]:
    found = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH).model.named_modules()
    weights = {name: module.dequantize_weight() for name, module in found if hasattr(module, "dequantize_weight")}
    save_file({name: weight.T.float().contiguous() for name, weight in weights.items()}, folder + "/read.st")
"""


@dataclass(frozen=True)
class AskedOfGptqmodel:
    """What one start of GPTQModel was asked: options; results of the walk, in which it left its weights; and what it printed."""

    options: list[dict[str, object]]
    results: dict[Path, Format]
    printed: list[str]
    complaints: str


@pytest.fixture(scope="module")
def gptqmodel(small: Path, tmp_path_factory: pytest.TempPathFactory) -> AskedOfGptqmodel:
    """Every way of GPTQ's format that AutoGPTQ and GPTQModel have; asymmetric ones in version 2 only: of version 1 it reads its own."""
    tool, folder = find_backend("gptqmodel"), tmp_path_factory.mktemp("gptqmodel")
    schemes = ("gptq-3-g64", "gptq-8-channel", "awq-4-g64")
    options = [dict(tool.options(chain("gptqmodel", scheme))) for scheme in schemes]
    ir, text = open_model(small).ir, TextSource("python-reference", 16, 64)
    results = {}
    for name in ("gptq-4-g32", "gptq-4-g32-act", "gptq-3-g32-asym-act-v2", "gptq-8-channel-v2"):
        one = pass_named(name)
        assert isinstance(one, Quantize)
        execute(Job(ir, small, (one,), folder / name, folder / "work", text, TextSource("self", 2, 64)))
        results[folder / name] = one.storage
    command = [str(environment("gptqmodel")), "-c", _ASKED_OF_GPTQMODEL, json.dumps(options), *map(str, results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return AskedOfGptqmodel(options, results, done.stdout.splitlines(), done.stderr[-1500:])


def test_gptqmodel_s_own_config_takes_our_options(gptqmodel: AskedOfGptqmodel) -> None:
    found = [line for line in gptqmodel.printed if line.startswith("FOUND")]
    expected = [f"FOUND {each['bits']} {each['group_size']} {each['sym']}" for each in gptqmodel.options]
    assert found == expected, gptqmodel.complaints


def test_gptqmodel_computes_with_the_weights_that_the_walk_writes(gptqmodel: AskedOfGptqmodel) -> None:
    for folder, form in gptqmodel.results.items():
        assert (folder / "read.st").exists(), gptqmodel.complaints
        stored = {key: each for file in folder.glob("*.safetensors") for key, each in load_file(file).items()}
        read = load_file(folder / "read.st")
        assert len(read) == 7 * 2
        for name, weight in read.items():
            # It computes in bfloat16, whose step is 0.4 %.
            ours = form.decode(name, stored, torch.float32)
            assert torch.allclose(ours, weight, rtol=1e-2, atol=1e-4), (folder.name, name)


#: How the engine's loader has bitsandbytes make each format.
_BITSANDBYTES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8-bnb": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def by_bitsandbytes(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as bitsandbytes makes it of each format, in a folder of that name."""
    code = """
import json, sys
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
for name, settings in json.loads(sys.argv[3]).items():
    settings = BitsAndBytesConfig(**settings)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=settings, device_map="cpu", dtype="auto")
    model.save_pretrained(sys.argv[2] + "/" + name)
"""
    out = tmp_path_factory.mktemp("bitsandbytes")
    command = [str(environment("tools")), "-c", code, str(small), str(out), json.dumps(_BITSANDBYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    return out


@pytest.mark.parametrize("scheme", _BITSANDBYTES)
def test_what_bitsandbytes_makes_of_a_matrix_takes_what_we_count(
    scheme: str, small: Path, by_bitsandbytes: Path
) -> None:
    made = load_file(by_bitsandbytes / scheme / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    rows, columns = load_file(small / "model.safetensors")[f"{name}.weight"].shape
    own = sum(made[f"{name}.{part}"].nbytes for part in ("weight", "SCB", "weight.absmax") if f"{name}.{part}" in made)
    counted = sum(tensor.bytes for tensor in resident(scheme).tensors(name, rows, columns))
    assert own == counted


@cache
def source_of(package: str, module: str) -> ast.Module:
    """A module of an installed package, parsed."""
    return ast.parse((folder_of(package) / module).read_text())


def parameters_of(tree: ast.Module, qualified: str) -> set[str]:
    """Names of the parameters of a function or a method, `Class.method`."""
    body: list[ast.stmt] = tree.body
    for part in qualified.split("."):
        node = next(node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part)
        body = node.body
    assert isinstance(node, ast.FunctionDef)
    return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}


def test_what_verify_asks_of_exllamav2_is_in_its_source() -> None:
    driver = ast.parse(DRIVER.read_text())
    imported = {
        (node.module, name.name)
        for node in ast.walk(driver)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("exllamav2")
        for name in node.names
    }
    for module, name in imported:
        file = {
            "exllamav2": "__init__.py",
            "exllamav2.generator": "generator/__init__.py",
            "exllamav2.attn": "attn.py",
        }[module]
        assert name in ast.unparse(source_of("exllamav2", file)), f"{module} has no {name}"
    places = {
        "ExLlamaV2DynamicGenerator": ("generator/dynamic.py", "ExLlamaV2DynamicGenerator.__init__"),
        "ExLlamaV2DynamicJob": ("generator/dynamic.py", "ExLlamaV2DynamicJob.__init__"),
        "kind": ("cache.py", "ExLlamaV2Cache_Q6.__init__"),
        "model.forward": ("model.py", "ExLlamaV2.forward"),
        "model.load_autosplit": ("model.py", "ExLlamaV2.load_autosplit"),
        "model.load": ("model.py", "ExLlamaV2.load"),
        "ExLlamaV2Tokenizer": ("tokenizer/tokenizer.py", "ExLlamaV2Tokenizer.__init__"),
        "ExLlamaV2Config": ("config.py", "ExLlamaV2Config.__init__"),
    }
    called = [node for node in ast.walk(driver) if isinstance(node, ast.Call) and ast.unparse(node.func) in places]
    assert {ast.unparse(call.func) for call in called} == set(places)
    for call in called:
        known = parameters_of(
            source_of("exllamav2", places[ast.unparse(call.func)][0]), places[ast.unparse(call.func)][1]
        )
        assert {keyword.arg for keyword in call.keywords} <= known and len(call.args) < len(known)
    engine, caches = ExllamaV2(), ast.unparse(source_of("exllamav2", "__init__.py"))
    for mode in map(engine.cache_mode, engine.kv_dtypes):
        name = "ExLlamaV2Cache" if mode == "FP16" else f"ExLlamaV2Cache_{mode}"
        assert f"import {name}\n" in caches
        assert parameters_of(source_of("exllamav2", "cache.py"), f"{name}.__init__") >= {"max_seq_len", "lazy"}
    dynamic = ast.unparse(source_of("exllamav2", "generator/dynamic.py"))
    for word in (
        "'stage'",
        "'streaming'",
        "'eos'",
        "'job'",
        "'new_tokens'",
        "'full_completion'",
        "def num_remaining_jobs",
    ):
        assert word in dynamic
    assert "def greedy" in ast.unparse(source_of("exllamav2", "generator/sampler.py"))
    for attribute in ("max_seq_len", "max_input_len", "max_attention_size"):
        assert f"{attribute}:" in ast.unparse(source_of("exllamav2", "config.py"))

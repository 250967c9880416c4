"""A package that knows nothing of this one's tables but their names adds a format, a pass, an engine, an outside tool and a launch
target to them.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from passes import chain
from passes.errors import InputError
from passes.formats.format import FORMATS, format_named
from passes.ir.sources import open_model
from passes.quantize.format_names import pass_named
from passes.quantize.quantize import Quantize
from passes.run.execute import execute
from passes.run.job import Job
from passes.steps.key import code_digest
from passes.text.source import TextSource
from planner.plan.codec import from_json, to_json
from planner.plan.document import PlanDocument
from planner.plan.launch import launch, of_result, target_files
from planner.plan.make import Plan, plan
from planner.spec.parse import as_spec, load_spec, parse_spec
from targets.engines.engine import find_engine
from targets.launch.write import write_launch
from tests.walk.conftest import save_tiny_llama

_ENTRY_POINTS = """
[tightfit.formats]
rows = toy_rows.formats:Rows
[tightfit.quant_configs]
rows = toy_rows.formats:RowsConfig
[tightfit.passes]
prune_last = toy_rows.passes:PruneLast
[tightfit.engines]
rows-engine = toy_rows.engine:RowsEngine
[tightfit.backends]
rows-tool = toy_rows.tool:RowsTool
[tightfit.launch_targets]
rows-host = toy_rows.target:RowsHost
"""
_FORMATS = """
from dataclasses import dataclass

from passes.formats.format import Format, Grid, KernelFamily
from passes.formats.tensor import Tensor
from passes.ir.quant_config.quant_config import QuantConfig


@dataclass(frozen=True, slots=True)
class Rows(Format):
    kind = "rows"
    quant_method = "rows"
    examples = ("rows8",)
    bits = 8
    kernel = KernelFamily.W8
    grid = Grid(8, -1)
    label = "rows8"

    @classmethod
    def named(cls, name):
        return cls() if name == "rows8" else None

    def illegal(self, out_features, in_features):
        return None

    def tensors(self, name, out_features, in_features):
        return Tensor(f"{name}.codes", "I8", (out_features, in_features)), Tensor(f"{name}.scale", "F32", (out_features, 1))

    def encode(self, name, quantized):
        import torch

        return {f"{name}.codes": quantized.codes.to(torch.int8), f"{name}.scale": quantized.scale.float()}

    def decode(self, name, tensors, dtype):
        return (tensors[f"{name}.codes"].float() * tensors[f"{name}.scale"]).to(dtype)


class RowsConfig(QuantConfig):
    def read(self, settings, ir):
        return lambda _: Rows()

    def write(self, ir, matrices):
        return {"quant_method": "rows", "rows": 8}
"""
_PASSES = '''
from dataclasses import dataclass

from passes.prune.depth import DepthPrune


@dataclass(frozen=True)
class PruneLast(DepthPrune):
    """The last block goes."""

    name = "prune_last"

    @classmethod
    def degrees(cls, ir):
        yield cls(1, (len(ir.decoder.layers) - 1,))
'''
_ENGINE = """
from targets.engines.engine import find_engine
from targets.engines.exllama.v2 import ExllamaV2
from targets.launch.request import Launch, LaunchFile


class RowsEngine(ExllamaV2):
    name = "rows-engine"
    formats = ("rows",)
    weighed_formats = ("rows8",)
    any_width = None

    def launch(self, request):
        script = f"#!/bin/sh\\nexec rows-server --name {request.served_name} --context {request.workload.context}\\n"
        return Launch((LaunchFile("run.sh", script, executable=True),), ("rows-server",), {}, 7000, "/ready")

    def speed(self, ir, gpu, settings, workload, memory):
        return find_engine("exllamav2").speed(ir, gpu, settings, workload, memory)
"""
_TOOL = '''
from passes.backends.backend import Backend
from passes.errors import Reason
from passes.quantize.quantize import Quantize

_PROGRAM = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
job = json.loads(Path(sys.argv[1]).read_text())
[file] = Path(job["source"]).glob("*.safetensors")
tensors = {}
for name, tensor in load_file(file).items():
    if not name.endswith("_proj.weight"):
        tensors[name] = tensor
        continue
    scale = tensor.float().abs().amax(1, keepdim=True) / 127
    stem = name.removesuffix(".weight")
    tensors |= {f"{stem}.codes": (tensor / scale).round().char(), f"{stem}.scale": scale}
Path(job["out"]).mkdir()
save_file(tensors, Path(job["out"]) / "model.safetensors")
print("1 of 1", flush=True)
"""


class RowsTool(Backend):
    name = "rows-tool"
    takes = Quantize
    package, module, versions = "toy-rows", "toy_rows", "1.0"

    def not_taken(self, pass_):
        return Reason("backend_cannot", f"{self.name} makes rows8 only", "rows8")

    def refuses_options(self, pass_):
        return None if pass_.storage.kind == "rows" else self.not_taken(pass_)

    def needs_cuda(self, pass_):
        return False

    def options(self, pass_):
        return {}

    @property
    def environment(self):
        from pathlib import Path

        return {"PYTHONPATH": str(Path(__file__).parents[1])}

    def command(self, python, task):
        return (str(python), "-c", _PROGRAM, str(task.job))

    def progress(self, line):
        return (1, 1) if line == "1 of 1" else None
'''
_TARGET = """
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget


class RowsHost(LaunchTarget):
    name = "rows-host"
    title = "a host of rows"

    def files(self, deployment):
        return (LaunchFile("rows.txt", f"{deployment.name} on port {deployment.launch.port}\\n"),)
"""
_SPEC = """
model: Qwen/Qwen2.5-7B-Instruct
target: { gpu: rtx-4090 }
engine: rows-engine
workload: { context: 8192, concurrency: 2 }
"""


def install(folder: Path, name: str, entry_points: str, **modules: str) -> None:
    """A distribution of one package, as `pip install` leaves it in `folder`."""
    info, package = folder / f"{name}-1.0.dist-info", folder / name
    info.mkdir(parents=True)
    package.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for module, text in {"__init__": "", **modules}.items():
        (package / f"{module}.py").write_text(text)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    install(
        folder, "toy_rows", _ENTRY_POINTS, formats=_FORMATS, passes=_PASSES, engine=_ENGINE, tool=_TOOL, target=_TARGET
    )
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    find_engine.cache_clear()
    for module in [module for module in sys.modules if module.split(".")[0] == "toy_rows"]:
        del sys.modules[module]


def planned(passes: str = "") -> Plan:
    return plan(parse_spec(_SPEC + passes))


def saved_and_read(document: PlanDocument) -> PlanDocument:
    return from_json(PlanDocument, json.loads(json.dumps(to_json(document))), "the plan")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder, text = save_tiny_llama(tmp_path / "llama"), tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 40)
    stored = pass_named("rows8")
    assert stored is not None
    return Job(
        open_model(folder).ir, folder, (stored,), tmp_path / "out", tmp_path / "work",
        calibration=TextSource(str(text), 8, 32), evaluation=TextSource("python-reference", 4, 32),
    )  # fmt: skip


def test_a_format_is_planned_by_its_name_and_read_back_from_the_plan() -> None:
    document = planned("passes: { quantize: { formats: [rows8], dense: false } }\n").document
    [stored] = (
        pass_ for pass_ in chain.from_json(saved_and_read(document).decision.passes) if pass_.name == "quantize"
    )
    assert isinstance(stored, Quantize) and stored.storage == format_named("rows8")


def test_a_format_is_written_by_the_walk_and_its_checkpoint_read_back(job: Job) -> None:
    outcome = execute(job)
    described = open_model(job.out).ir
    assert described.quant_method == "rows" and described.tensor_bytes == outcome.tensor_bytes
    assert json.loads((job.out / "config.json").read_text())["quantization_config"] == {
        "quant_method": "rows",
        "rows": 8,
    }
    assert outcome.measured is not None and outcome.measured.kl < 0.01


def test_an_engine_that_does_not_know_the_format_refuses_it() -> None:
    spec = _SPEC.replace("rows-engine", "vllm") + "passes: { quantize: { formats: [rows8], dense: false } }\n"
    rejected = plan(parse_spec(spec)).result.rejected
    assert rejected and all("rows_not_in_vllm" in {r.code for r in verdict.reasons} for verdict in rejected)


def test_a_pruning_is_weighed_where_the_spec_allows_pruning(tmp_path: Path) -> None:
    def weighed(choice: str) -> bool:
        result = planned(f"passes: {{ prune: {choice} }}\n").result
        return any(step.name == "prune_last" for verdict in result.rejected for step in verdict.candidate.passes)

    assert weighed("allow") and not weighed("forbid")


def test_a_pass_is_run_and_read_back_from_its_json(job: Job) -> None:
    kind = chain.PASSES.find("prune_last")
    [pruning] = kind.degrees(job.source)
    assert chain.from_json(chain.to_json((pruning,))) == (pruning,)
    outcome = execute(replace(job, passes=(pruning, *job.passes)))
    assert len(outcome.target.decoder.layers) == len(job.source.decoder.layers) - 1


def test_the_launch_files_are_those_of_the_engine(tmp_path: Path) -> None:
    document = saved_and_read(planned().document)
    files = launch(document, open_model("Qwen/Qwen2.5-7B-Instruct").ir, "toy").files
    write_launch(tmp_path, files)
    script = tmp_path / "launch" / "run.sh"
    assert script.read_text() == "#!/bin/sh\nexec rows-server --name toy --context 8192\n"
    assert script.stat().st_mode & 0o100


def test_a_launch_target_is_named_in_a_spec_and_writes_from_the_deployment_of_any_engine(tmp_path: Path) -> None:
    spec = _SPEC.replace("rows-engine", "vllm") + "launch: [rows-host]\n"
    document = saved_and_read(plan(parse_spec(spec)).document)
    assert document.spec.launch == ("rows-host",)
    server = of_result(document, tmp_path / "result", open_model("Qwen/Qwen2.5-7B-Instruct").ir)
    [file] = target_files(server, document.spec.launch)
    assert file.path.endswith("rows.txt") and file.text == f"{server.name} on port {server.launch.port}\n"
    with pytest.raises(InputError, match="rows-hots") as error:
        as_spec(yaml.safe_load(_SPEC + "launch: [rows-hots]\n"))
    assert "rows-host" in str(error.value)


def test_a_tool_is_named_in_a_spec_and_makes_the_format(job: Job) -> None:
    document = planned("passes: { quantize: { formats: [rows8], dense: false, backend: rows-tool } }\n").document
    [stored, *_] = chain.from_json(saved_and_read(document).decision.passes)
    assert stored.backend == "rows-tool"
    outcome = execute(replace(job, passes=(stored,)))
    assert "rows-tool 1.0" in [step.name for step in outcome.steps]
    assert open_model(job.out).ir.quant_method == "rows"


def test_a_tool_refuses_what_it_does_not_make() -> None:
    other = pass_named("gptq-4-g128")
    assert other is not None
    [reason] = chain.illegal(open_model("llama-3.1-8b").ir, (other.with_options(backend="rows-tool"),))
    assert reason.code == "backend_cannot" and "rows8" in reason.message


def test_an_unknown_tool_is_told_the_nearest_and_where_it_stands(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(_SPEC.lstrip() + "passes:\n  quantize:\n    backend: row-tool\n")
    with pytest.raises(InputError, match="rows-tool") as error:
        load_spec(spec)
    assert error.value.location is not None and error.value.location.line == 7


def test_a_misspelt_format_is_told_the_nearest_of_every_package() -> None:
    with pytest.raises(InputError, match=r"Did you mean .*'rows8'"):
        pass_named("row8")


def test_another_version_of_the_package_makes_its_steps_anew(installed: Path) -> None:
    digests = set()
    for version in ("1.0", "2.0"):
        metadata = f"Metadata-Version: 2.1\nName: toy-rows\nVersion: {version}\n"
        (installed / "toy_rows-1.0.dist-info" / "METADATA").write_text(metadata)
        importlib.invalidate_caches()
        code_digest.cache_clear()
        digests.add(code_digest())
    code_digest.cache_clear()
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("group", "name", "look"),
    [
        ("formats", "rows", lambda: format_named("rows8")),
        ("passes", "prune_last", lambda: chain.PASSES.find("prune_last")),
        ("engines", "rows-engine", lambda: find_engine("rows-engine")),
        ("backends", "rows-tool", lambda: chain.find_backend("rows-tool")),
    ],
)
def test_a_name_that_two_packages_add_is_refused(
    installed: Path, group: str, name: str, look: Callable[[], object]
) -> None:
    install(installed, "other_rows", f"[tightfit.{group}]\n{name} = other_rows:Anything\n")
    importlib.invalidate_caches()
    with pytest.raises(InputError, match="is there twice") as error:
        look()
    assert "toy-rows" in str(error.value) and "other-rows" in str(error.value) and name in str(error.value)


def test_a_name_of_ours_is_not_for_other_packages(installed: Path) -> None:
    install(installed, "other_rows", "[tightfit.formats]\ngptq = other_rows:Anything\n")
    importlib.invalidate_caches()
    assert FORMATS.find("gptq").__module__ == "passes.formats.gptq"
    with pytest.raises(InputError, match="'gptq' is there twice: in tightfit and in other-rows"):
        format_named("rows8")

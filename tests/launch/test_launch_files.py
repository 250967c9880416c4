"""What is written to start an engine, held against golden files: a change there is a change of what users run.

`python -m tests.launch.test_launch_files` writes them anew.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from passes.errors import InputError
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.quantize.at_load import QuantizeAtLoad
from targets.engines.exllama.launch import cache_mode
from targets.launch.write import launch_files, write_launch

_GOLDEN = Path(__file__).with_name("golden")


def plan(
    engine: str, version: str, *, context: int = 8000, concurrency: int | None = 4, **settings: Any
) -> dict[str, Any]:
    """The part of a plan that launch files are made from."""
    return {
        "chosen": {
            "engine": {"name": engine, "version": version},
            "label": f"{engine}: quantize{{gptq, w4a16-g64}}",
            "settings": {"tensor_parallel": 1, "pipeline_parallel": 1, **settings},
            "memory": {"kv_cache": {"value": 1 << 30}},
        },
        "spec": {"workload": {"context": context, "concurrency": concurrency}},
    }


#: name of the golden folder → (plan, KV type of the result, scales in the checkpoint)
CASES = {
    "vllm": (plan("vllm", "0.32", tensor_parallel=2, gpu_memory_utilization=0.9, max_num_seqs=64), "fp8", False),
    "vllm-scales-in-checkpoint": (plan("vllm", "0.32", enforce_eager=True, pipeline_parallel=2), "fp8", True),
    "vllm-cpu": (plan("vllm-cpu", "0.32"), "auto", False),
    "exllamav2": (plan("exllamav2", "0.3.2"), "q4", False),
    "exllamav3": (plan("exllamav3", "0.0.6", tensor_parallel=2, max_num_batched_tokens=1024), "q6", False),
}


@pytest.mark.parametrize(
    ("scheme", "version", "arguments"),
    [
        ("nf4", "0.27", {"quantization": "bitsandbytes", "load-format": "bitsandbytes"}),
        ("fp8-online", "0.31", {"quantization": "fp8"}),
        ("fp8-online", "0.32", {"quantization": "fp8_per_tensor"}),  # 0.32 refuses `fp8` for a dense checkpoint
    ],
)
def test_what_an_engine_quantizes_while_it_loads_is_in_its_arguments(
    scheme: str, version: str, arguments: dict[str, str]
) -> None:
    ir = QuantizeAtLoad(scheme).rewrite(open_model("Qwen2.5-7B-Instruct").ir)
    [written] = [
        yaml.safe_load(f.text) for f in launch_files(plan("vllm", version), ir, "small") if f.path == "vllm.yaml"
    ]
    assert arguments.items() <= written.items()


def texts(name: str) -> dict[str, str]:
    """The launch files of a case by their path."""
    document, dtype, scales = CASES[name]
    ir = KVCachePass(dtype, scales=scales).rewrite(open_model("Qwen2.5-7B-Instruct").ir)
    return {file.path: file.text for file in launch_files(document, ir, "small")}


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


def test_the_cache_of_exllama_is_whole_pages_for_every_request() -> None:
    model = yaml.safe_load(texts("exllamav2")["config.yml"])["model"]
    assert model["max_seq_len"] == 8192 and model["cache_size"] == 4 * 8192


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
    assert cache_mode(engine, dtype) == name


def test_an_engine_without_launch_files_is_refused() -> None:
    with pytest.raises(InputError, match="no launch files"):
        launch_files(plan("llama.cpp", "1"), open_model("Qwen2.5-7B-Instruct").ir, "small")


def test_run_sh_finds_its_own_folder_and_starts_what_is_on_the_path(tmp_path: Path) -> None:
    document, _, _ = CASES["vllm"]
    write_launch(tmp_path, launch_files(document, open_model("Qwen2.5-7B-Instruct").ir, "small"))
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

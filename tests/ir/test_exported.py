"""Checkpoints as the tools themselves write them: each line of exported.jsonl holds a folder's JSON files and the tensors of its headers.

A Llama of three layers was given to each tool's own export on a processor (`made_by`); the files are written out again with zeros inside.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from passes.formats.tensor import Tensor
from passes.ir.sources import open_model
from targets.engines.engine import Settings, find_engine
from targets.gpu import find_gpu
from tests.ir.checkpoints import write_described

FOLDERS: dict[str, dict[str, Any]] = {
    found["name"]: found
    for found in map(json.loads, Path(__file__).with_name("exported.jsonl").read_text("utf-8").splitlines())
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_tool_exports_is_named_and_weighed_as_it_is(name: str, tmp_path: Path) -> None:
    folder = FOLDERS[name]
    tensors = [Tensor(tensor, dtype, tuple(shape)) for tensor, (dtype, shape) in folder["tensors"].items()]
    write_described(tmp_path / name, folder["files"]["config.json"], tensors)
    for file, content in folder["files"].items():
        (tmp_path / name / file).write_text(json.dumps(content))
    source = open_model(tmp_path / name)
    blocks = (source.ir.decoder.block(layer) for layer in range(len(source.ir.decoder.layers)))
    labels = Counter(linear.storage.label for block in blocks for linear in block.linears)
    assert dict(labels) == folder["labels"]
    assert source.ir.tensor_bytes == sum(tensor.bytes for tensor in tensors)
    reasons = find_engine("vllm").illegal(source.ir, find_gpu(folder["gpu"]), Settings())
    assert sorted({reason.code for reason in reasons}) == folder["refused"]
    assert source.ir.kv_cache.declared == folder["kv"]
    assert not any("again" in (reason.remedy or "") for reason in reasons)

"""What the stages compute themselves: text, shares of equal bytes, seconds a block out of another tool's log."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch

from benchmarks.on_card.__main__ import chosen_stages
from benchmarks.on_card.measuring import by_block, lapses
from benchmarks.on_card.peers import watched
from benchmarks.on_card.shapes import Text, blocks_model, pseudo_text, save_tokenizer, walked
from benchmarks.on_card.smollm2 import equal_bytes
from benchmarks.on_card.staging import Notes, NotHereError, Setup
from benchmarks.on_card.tools import find_tool
from passes.files.checkpoint import write_shard

_LOG = """Loading
2026-11-28T00:01:45 | compress_module_list | INFO - Quantizing 1 module(s): ['model.layers.0.self_attn.v_proj']
INFO - Quantizing 1 module(s): ['model.layers.0.mlp.down_proj']
(2/5): Calibrating
Quantizing layer 1 of 3
INFO - Quantizing 1 module(s): ['model.layers.2.self_attn.q_proj']
{"card_peak_gib": 3.5, "host_peak_gib": 1.0}
"""


def test_blocks_of_another_tool_are_timed_from_name_to_name(tmp_path: Path) -> None:
    note = Notes(tmp_path / "notes")
    starts, said, end = watched(StringIO(_LOG), note)
    assert len(starts) == 3 and "3.5" in said and end.endswith(said)
    assert len(note.found["walk"]["seconds"]) == 2


def test_the_first_block_is_told_apart() -> None:
    assert lapses([1.0, 3.0, 4.0]) == [2.0, 1.0]
    assert by_block([5.0, 1.0, 3.0, 2.0]) == {"seconds": [5.0, 1.0, 3.0, 2.0], "first_s": 5.0, "block_s": 2.0}
    assert by_block([5.0])["block_s"] == 5.0


def test_text_is_the_same_each_time_and_within_the_vocabulary() -> None:
    first, second = (pseudo_text(512, Text(6, 64)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (6, 64)
    assert int(first.min()) >= 0 and int(first.max()) < 511
    counts = first.flatten().bincount(minlength=512)
    assert counts[:50].sum() > 3 * counts[250:300].sum()


def test_the_model_is_made_once_and_has_loud_channels(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "tiny")
    work = walked(setup, "one")
    norm = work.dense.block(0)["post_attention_layernorm.weight"].float()
    assert len(work.dense) == 4 and work.run.text.shape == (8, 128)
    assert float(norm.median()) < 1.2
    before = {path.name: path.stat().st_mtime_ns for path in work.folder.iterdir()}
    assert blocks_model(setup) == work.folder
    assert {path.name: path.stat().st_mtime_ns for path in work.folder.iterdir()} == before


def test_bytes_of_two_results_are_counted(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    same, codes = torch.ones(3, dtype=torch.bfloat16), torch.arange(4, dtype=torch.int32)
    write_shard(tmp_path / "one" / "model.safetensors", {"same": same, "codes": codes})
    write_shard(
        tmp_path / "two" / "model.safetensors",
        {"same": same, "codes": codes + torch.tensor([0, 0, 0, 1], dtype=torch.int32)},
    )
    assert equal_bytes(tmp_path / "one", tmp_path / "two") == {
        "equal_bytes": round(21 / 22, 6),
        "equal_tensors": 1,
        "tensors": 2,
    }


def test_a_tool_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotHereError, match=r"exllamav2 is not there .*empty.*--tool exllamav2=PATH"):
        find_tool(Setup(tmp_path, tools={"exllamav2": str(tmp_path / "empty")}), "exllamav2")


def test_a_tool_is_found_in_a_folder_of_packages(tmp_path: Path) -> None:
    (tmp_path / "gptqmodel").mkdir()
    (tmp_path / "gptqmodel" / "__init__.py").write_text("")
    (tmp_path / "gptqmodel-1.2.dist-info").mkdir()
    (tmp_path / "gptqmodel-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: gptqmodel\nVersion: 1.2\n"
    )
    tool = find_tool(Setup(tmp_path, tools={"gptqmodel": str(tmp_path)}), "gptqmodel")
    assert (tool.version, tool.environment["PYTHONPATH"]) == ("1.2", str(tmp_path))


def test_stages_are_named_by_how_they_begin_too() -> None:
    from argparse import ArgumentParser

    names, parser = ["machine", "calibrate", "vllm_bf16", "vllm_awq"], ArgumentParser()
    assert chosen_stages(names, None, "", parser) == names
    assert chosen_stages(names, "vllm_*,calibrate", "vllm_awq", parser) == ["machine", "vllm_bf16", "calibrate"]
    with pytest.raises(SystemExit):
        chosen_stages(names, "vllm", "", parser)


def test_every_token_of_the_tokenizer_has_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path, 300)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 300 and tokenizer.eos_token_id == 299
    assert all(tokenizer.decode([index]) for index in range(300))
    assert tokenizer.decode(tokenizer("a text").input_ids) == "a text"

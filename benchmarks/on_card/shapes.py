"""Models that the stages make for themselves: a Llama-3.1-8B's blocks with random weights, its text, its tokenizer; or tiny ones.

Norms carry a few channels far above the others, as trained models do, so that Hessians and scales look like theirs. Text is drawn by
rank (Zipf), with a word that follows each word more often than chance.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.on_card.staging import Setup
from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import compute_devices, compute_dtype
from passes.files.checkpoint import Checkpoint, write_index, write_shard
from passes.ir import catalog
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.steps.context import RunContext
from passes.steps.step import Steps

if TYPE_CHECKING:
    import torch

_FULL = "meta-llama/Llama-3.1-8B-Instruct"
#: What keeps the blocks as they are and the rest small: the walk looks at blocks.
_BLOCKS, _VOCABULARY = 4, 4096
_TINY = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
_STD, _LOUD_SHARE, _LOUD = 0.02, 0.003, 12.0


@dataclass(frozen=True)
class Text:
    """How many sequences of how many tokens calibrate."""

    samples: int
    length: int


def text_size(setup: Setup) -> Text:
    """128 × 2048, or little."""
    return Text(8, 128) if setup.shape == "tiny" else Text(128, 2048)


def served_config(setup: Setup) -> dict[str, Any]:
    """config.json of the whole 8B model, or of two tiny blocks: what is served with weights that the engine makes up."""
    config = dict(catalog.entry(_FULL).config)
    return config if setup.shape == "8b" else config | _TINY | {"num_hidden_layers": 2, "vocab_size": 2048}


def save_config(folder: Path, config: Mapping[str, Any]) -> None:
    """A model's folder without weights: its config and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_tokenizer(folder, config["vocab_size"])


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """One token for each character of ASCII, then words that no text makes, up to the vocabulary's size.

    Whatever is generated has text of its own: half a character would be held back, and engines send nothing for a token without text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {symbol: index for index, symbol in enumerate(["Ġ", *map(chr, range(33, 127))])}
    words |= {f"word{index}": index for index in range(len(words), vocabulary - 1)} | {"<end>": vocabulary - 1}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def blocks_model(setup: Setup) -> Path:
    """The folder of a model of four blocks of the 8B shape in bf16, vocabulary 4096, made where it is missing (on the card)."""
    folder = setup.work / f"model-{setup.shape}"
    if folder.exists():
        return folder
    import torch

    config = served_config(setup) | {
        "num_hidden_layers": _BLOCKS, "vocab_size": 512 if setup.shape == "tiny" else _VOCABULARY,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_config(partial, config)
    device = compute_devices()[0]
    generator = torch.Generator(device).manual_seed(0)
    ir = open_model(partial).ir
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for tensor in ir.tensors():
        value = torch.randn(tensor.shape, generator=generator, device=device)
        if len(tensor.shape) == 1:
            loud = torch.rand(tensor.shape, generator=generator, device=device) < _LOUD_SHARE
            value = 1 + 0.1 * value + _LOUD * loud
        else:
            value *= _STD
        block = tensor.name.split(".layers.")[-1].split(".")[0] if ".layers." in tensor.name else "outer"
        shards.setdefault(block, {})[tensor.name] = value.bfloat16().cpu()
    for block, tensors in shards.items():
        write_shard(partial / f"model-{block}.safetensors", tensors)
    write_index(partial)
    partial.rename(folder)
    return folder


def pseudo_text(vocabulary: int, size: Text) -> torch.Tensor:
    """Token ids int64 `[samples, length]`: ranks by Zipf's law, every fourth token the one that follows its neighbour in rank."""
    import torch

    generator = torch.Generator().manual_seed(1)
    weights = 1 / (torch.arange(vocabulary - 1, dtype=torch.float32) + 8)
    ids = torch.multinomial(weights, size.samples * size.length, replacement=True, generator=generator)
    ids = ids.reshape(size.samples, size.length)
    ids[:, 1::4] = (7 * ids[:, 0::4][:, : ids[:, 1::4].shape[1]] + 3) % (vocabulary - 1)
    return ids


@dataclass(frozen=True)
class Walked:
    """What a walk needs: where the model lies, its description, its weights, the run."""

    folder: Path
    ir: ModelIR
    dense: DenseModel
    run: RunContext


def walked(setup: Setup, name: str) -> Walked:
    """The four blocks and their text, ready to be walked on the first device; what an earlier run left under `name` goes."""
    folder = blocks_model(setup)
    ir = open_model(folder).ir
    place = setup.work / "walks" / name
    shutil.rmtree(place, ignore_errors=True)
    text = pseudo_text(ir.vocab_size, text_size(setup))
    run = RunContext(place, compute_devices()[:1], compute_dtype(ir.dtype), text, Steps(place))
    return Walked(folder, ir, DenseModel(ir, Checkpoint(folder)), run)

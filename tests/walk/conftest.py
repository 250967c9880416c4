"""A tiny Llama with random weights and a byte tokenizer, saved the way real models are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.steps.context import RunContext
from passes.steps.step import Report, Steps
from tests.walk.families import save_tiny

BLOCKS = 4
#: A spec in the folder of a tiny model `model` and a text `text.txt`: made in seconds, whatever it loses.
TINY_SPEC = """
model: model
target: { gpu: rtx-4090 }
engine: vllm
workload: { context: 128, concurrency: 1, input_tokens: 32, output_tokens: 16 }
goals: { quality: { max_perplexity_increase: 900% } }
passes: { quantize: { formats: [w4a16-g32], dense: false }, kv_cache: [auto] }
calibration: { dataset: text.txt, samples: 4, length: 32 }
evaluation: { dataset: python-reference, samples: 2, length: 32 }
"""


def save_family(family: str, folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A tiny model of a family with a byte tokenizer, its biases random: classes begin with zeros, which hide mistakes."""
    model = save_tiny(family, folder, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tiny_llama(folder: Path, blocks: int = BLOCKS, dtype: torch.dtype = torch.float32, hidden: int = 64) -> Path:
    """A Llama of a few blocks: 4 query and 2 KV heads, vocabulary 300."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=300, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, around: str = "$A") -> None:
    """One token a byte. `around`: what the tokenizer puts around a text, as `<begin> $A <end>`; nothing by default."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = {"<end>": 256, "<begin>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet | special, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if around != "$A":
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[*special.items()])
    begin = {"bos_token": "<begin>"} if "<begin>" in around else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", **begin).save_pretrained(folder)


def context(
    folder: Path,
    text: torch.Tensor,
    devices: tuple[torch.device, ...] = (torch.device("cpu"),),
    report: Report | None = None,
) -> RunContext:
    """A run on token ids `[S, T]` in single precision, everything it keeps in one folder."""
    return RunContext(folder, devices, torch.float32, text, Steps(folder)).part(folder, report)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama_ir(llama: Path) -> ModelIR:
    return open_model(llama).ir


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (12, 32), generator=torch.Generator().manual_seed(3))

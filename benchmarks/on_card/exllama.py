"""An EXL2 result of SmolLM2 read by ExLlamaV2's own kernels: every matrix, the logits, tokens a second with each cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.on_card import smollm2
from benchmarks.on_card.staging import Notes, NotHereError, Setup
from benchmarks.on_card.tools import find_tool
from passes.blocks.decoded_weights import decoded_model
from passes.blocks.devices import compute_devices
from passes.files.checkpoint import Checkpoint, write_shard
from passes.formats.exllama.exl2_options import ATTENTION, MLP
from passes.ir.model import ModelIR
from passes.prune.depth import DepthPrune
from passes.quantize.exl2 import QuantizeExl2
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks

_PROGRAM = Path(__file__).with_name("exllama_program.py")
_COMPARED = TextSource(PYTHON_REFERENCE, 2, 256, seed=5)


def read_back(setup: Setup, note: Notes) -> None:
    """Make the result, then have ExLlamaV2 read it; raises NotHereError where it or a card is not there."""
    import torch

    if not torch.cuda.is_available():
        raise NotHereError("ExLlamaV2's kernels run on CUDA cards only")
    tool = find_tool(setup, "exllamav2")
    place = made(setup, note)
    command = [str(tool.python), str(_PROGRAM), str(place / "out"), str(place / "reference.safetensors")]
    note(version=tool.version)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=tool.environment) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if line.startswith("{"):
                note(**json.loads(line))
    if running.returncode:
        raise RuntimeError(f"ExLlamaV2 ended with code {running.returncode}")
    found = note.found
    speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in found["tok_s"].items())
    note(
        headline=f"{found['equal_matrices']} of {found['matrices']} matrices equal, furthest {found['furthest']:.1e}; KL of logits {found['kl']:.1e}, "
        f"top-1 {found['top1']:.1%}; tokens/s {speeds}"
    )


def made(setup: Setup, note: Notes) -> Path:
    """A folder with the result (`out`), a layer for each option of attention and MLP, and `reference.safetensors`: ours of it."""
    folder, ir = smollm2.model(setup)
    place = setup.work / "exllama"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    layers = min(len(ATTENTION), len(ir.decoder.layers))
    dropped = tuple(range(layers // 2, len(ir.decoder.layers) - (layers - layers // 2)))
    kept = DepthPrune(len(dropped), dropped)
    choices = tuple((layer % len(ATTENTION), layer % len(MLP)) for layer in range(layers))
    tiny = setup.shape == "tiny"
    text = TextSource(str(smollm2.pages_file(setup)), 4 if tiny else 32, 64 if tiny else 256)
    held_out = TextSource(PYTHON_REFERENCE, 2, 64)
    began = time.monotonic()
    outcome = execute(
        Job(ir, folder, (kept, QuantizeExl2(8.0, choices=choices)), place / "out", place / "work", text, held_out)
    )
    walk = next(step for step in outcome.steps if step.name == "walk")
    note(walk_block_s=round(walk.seconds / layers, 3), blocks=layers, made_s=round(time.monotonic() - began, 1))
    ids = token_blocks(_COMPARED, folder)
    write_shard(place / "reference.safetensors", reference(kept.rewrite(ir), outcome.target, place / "out", ids))
    note(reference_s=round(time.monotonic() - began - note.found["made_s"], 1))
    return place


def reference(source: ModelIR, target: ModelIR, out: Path, ids: Any) -> dict[str, Any]:
    """`NAME.weight` fp16 `[N, K]` of every EXL2 matrix as our decoder has it; `ids` `[S, T]`, and the `logits` that transformers computes
    from these weights in fp32.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    dense = decoded_model(source, target, out, torch.float16)
    values = {key: value for key, value in dense.ir.config.items() if key != "quantization_config"}
    config = CONFIG_MAPPING[dense.ir.model_type].from_dict(values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights = dense.weights.read(name for name, _ in model.named_parameters() if name in dense.weights)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    model.tie_weights()
    device = compute_devices()[0]
    with torch.no_grad():
        logits = model.to(device)(ids.to(device)).logits.float().cpu()
    stored = Checkpoint(out)
    matrices = {
        name: tensor for name, tensor in weights.items() if f"{name.removesuffix('.weight')}.q_weight" in stored
    }
    return {**matrices, "ids": ids, "logits": logits}

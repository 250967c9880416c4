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
from passes.blocks.decoded_weights import DecodedCheckpoint, decoded_model
from passes.blocks.devices import compute_devices
from passes.files.checkpoint import Checkpoint, write_shard
from passes.formats.exllama.exl2 import Exl2
from passes.formats.exllama.exl2_options import ATTENTION, MLP
from passes.ir.model import ModelIR
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
    """A folder with the result (`out`) in which every option stands in some layer, and `reference.safetensors`: ours of it."""
    folder, ir = smollm2.model(setup)
    place = setup.work / "exllama"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    choices = tuple((layer % len(ATTENTION), layer % len(MLP)) for layer in range(len(ir.decoder.layers)))
    tiny = setup.shape == "tiny"
    text = TextSource(str(smollm2.pages_file(setup)), 4 if tiny else 32, 64 if tiny else 256)
    began = time.monotonic()
    outcome = execute(
        Job(
            ir,
            folder,
            (QuantizeExl2(8.0, choices=choices),),
            place / "out",
            place / "work",
            text,
            TextSource(PYTHON_REFERENCE, 2, 64),
        )
    )
    walk = next(step for step in outcome.steps if step.name == "walk")
    note(
        walk_block_s=round(walk.seconds / len(choices), 3),
        blocks=len(choices),
        made_s=round(time.monotonic() - began, 1),
    )
    write_shard(
        place / "reference.safetensors", reference(outcome.target, ir, place / "out", token_blocks(_COMPARED, folder))
    )
    return place


def reference(target: ModelIR, source: ModelIR, out: Path, ids: Any) -> dict[str, Any]:
    """`NAME.weight` fp16 `[N, K]` of every EXL2 matrix as our decoder has it; `ids` `[S, T]` and the `logits` fp32 of that dense model."""
    import torch

    decoded = DecodedCheckpoint(Checkpoint(out), target, torch.float16)
    names = [f"{linear.name}.weight" for linear in target.outer if isinstance(linear.storage, Exl2)]
    for layer in range(len(target.decoder.layers)):
        prefix = target.decoder.layer_prefix(layer)
        names += [
            f"{prefix}{lin.name}.weight" for lin in target.decoder.block(layer).linears if isinstance(lin.storage, Exl2)
        ]
    return {**decoded.read(names), "ids": ids, "logits": _logits(source, target, out, ids)}


def _logits(source: ModelIR, target: ModelIR, out: Path, ids: Any) -> Any:
    """Logits fp32 of the decoded weights by transformers, in single precision."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    dense = decoded_model(source, target, out, torch.float32)
    values = {key: value for key, value in dense.ir.config.items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[dense.ir.model_type].from_dict(values), dtype=torch.float32
    ).eval()
    names = [name for name, _ in model.named_parameters() if name in dense.weights]
    model.load_state_dict({name: tensor.float() for name, tensor in dense.weights.read(names).items()}, strict=False)
    model.tie_weights()
    device = compute_devices()[0]
    with torch.no_grad():
        return model.to(device)(ids.to(device)).logits.float().cpu()

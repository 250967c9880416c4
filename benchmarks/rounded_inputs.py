"""What NVFP4 costs the two small models that are at hand where inputs are 4-bit floats too, as rows of `data/quality_own.jsonl`.

    python -m benchmarks.rounded_inputs smollm2|gemma3

`benchmarks/small_models.py` walks weights alone. Here every matrix of the blocks is rounded to nearest, and with it each token's inputs in
groups of 16 as the engine rounds them (scales in e4m3 made on the fly, one global scale of each matrix from the model's own text). The
row of weights alone stands beside it and is that of the walk, which shows that the rounding is the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

from benchmarks.small_models import MODELS
from passes.formats.format import E2M1_MAX, E4M3_MAX
from passes.ir.sources import open_model
from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks

_GROUP = 16
_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_BETWEEN = (_VALUES[1:] + _VALUES[:-1]) / 2


def rounded(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Round to e2m1 in groups of the last dimension; scales are e4m3 below a global one that `largest` fills."""
    groups = values.float().unflatten(-1, (-1, _GROUP))
    whole = (largest / (E2M1_MAX * E4M3_MAX)).clamp(min=1e-30)
    scale = (groups.abs().amax(-1, keepdim=True) / E2M1_MAX / whole).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    steps = scale.float() * whole
    ratio = torch.where(steps > 0, groups.abs() / steps.clamp(min=1e-30), 0.0)
    return (_VALUES[torch.bucketize(ratio, _BETWEEN)] * groups.sign() * steps).flatten(-2).to(values.dtype)


def _matrices(model: Any) -> Iterator[torch.nn.Linear]:
    return (part for part in model.model.layers.modules() if isinstance(part, torch.nn.Linear))


def _log_probabilities(model: Any, texts: torch.Tensor) -> Iterator[torch.Tensor]:
    for text in texts:
        yield log_softmax(model(text[None]).logits[0, :-1].float(), -1)


def _judged(model: Any, source: Any, texts: torch.Tensor) -> tuple[float, float, float]:
    """KL of a model against the source, the rise of log-perplexity, and the source's log-perplexity, in nats a token."""
    rows = []
    for text, ours, theirs in zip(
        texts, _log_probabilities(model, texts), _log_probabilities(source, texts), strict=True
    ):
        said = [each.gather(1, text[1:, None]).mean().item() for each in (ours, theirs)]
        rows.append(((theirs.exp() * (theirs - ours)).sum(-1).mean().item(), said[1] - said[0], -said[1]))
    kl, rise, loss = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return kl, rise, loss


def _largest_inputs(model: Any, texts: torch.Tensor) -> dict[torch.nn.Linear, torch.Tensor]:
    """The largest input of each matrix on a text."""
    found: dict[torch.nn.Linear, torch.Tensor] = {}

    def seen(part: torch.nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
        found[part] = torch.maximum(found.get(part, torch.zeros(())), inputs[0].abs().amax().float())

    hooks = [part.register_forward_pre_hook(seen) for part in _matrices(model)]
    for text in texts:
        model(text[None])
    for hook in hooks:
        hook.remove()
    return found


@torch.inference_mode()
def measured(name: str, samples: int, length: int) -> None:
    """Print a row for weights alone and one for weights and inputs."""
    from transformers import AutoModelForCausalLM

    title, fetched = MODELS[name]
    with tempfile.TemporaryDirectory() as place:
        files = open_model(fetched()).materialize(Path(place))
        text, judging = (
            token_blocks(TextSource(source, count, length), files)
            for source, count in (("self", samples), (PYTHON_REFERENCE, samples // 2))
        )
        source, model = (AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32).eval() for _ in range(2))
    for part in _matrices(model):
        part.weight.copy_(rounded(part.weight, part.weight.abs().amax()))
    for method in ("nvfp4a16", "nvfp4"):
        if method == "nvfp4":
            largest = _largest_inputs(source, text)
            for whole, part in zip(_matrices(source), _matrices(model), strict=True):
                part.register_forward_pre_hook(lambda _, inputs, most=largest[whole]: (rounded(inputs[0], most),))
        kl, rise, loss = _judged(model, source, judging)
        row = {
            "source_url": f"benchmarks/rounded_inputs.py: ours, to nearest, {samples} x {length} tokens of its own text", "model": title,
            "method": method, "metric": "KL divergence vs source", "dataset": "python-reference", "value": round(kl, 5), "baseline_value": 0,
            "log_ppl_increase": round(rise, 5), "source_perplexity": round(float(torch.tensor(loss).exp()), 2),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    measured(options.model, options.samples, options.length)


if __name__ == "__main__":
    main()

"""What an outside tool left, as shards of ours: only the tensors of the description, and none that it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from passes.errors import GoalMissedError
from passes.files.checkpoint import Checkpoint, write_shard
from passes.formats.tensor import Tensor, float_dtype
from passes.ir.model import ModelIR

#: What tools write beside the description's tensors and engines do not read: a tied head's second copy.
_SPARE = ("lm_head.weight",)


def described(planned: ModelIR, folder: Path) -> ModelIR:
    """Return the description of the finished checkpoint: the planned one; where the tool chose (EXL2's options), the one of its headers.

    Raises GoalMissedError where the tool's choice takes more bytes than was planned.
    """
    if not any(linear.storage.is_bound for block, _ in planned.decoder.counts for linear in block.linears):
        return planned
    from passes.ir.sources import open_model

    found = open_model(folder).ir
    if found.tensor_bytes > planned.tensor_bytes:
        raise GoalMissedError(
            f"the tool's choice takes {found.tensor_bytes:,} bytes, the plan has {planned.tensor_bytes:,}",
            remedy="plan for fewer bits a weight",
        )
    return found


def write_shards(target: ModelIR, made: Path, folder: Path) -> None:
    """Write one shard a layer, and one for what the tool changed outside of them. What was there before is replaced, so that a second
    run gives the same bytes. Plain numbers (norms, biases) that the tool left in another float type take that of the description.
    Raises GoalMissedError that names the first tensor too many or too few.
    """
    checkpoint, kept = Checkpoint(made), set(target.outer_names())
    names = {tensor.name for tensor in target.tensors()}
    found = {tensor.name for tensor in checkpoint.describe()}
    if strange := sorted(found - names - set(_SPARE)):
        raise GoalMissedError(
            f"the tool wrote {strange[0]!r}, which the plan does not hold", remedy="another version of the tool?"
        )
    if absent := sorted(names - kept - found):
        raise GoalMissedError(f"the tool did not write {absent[0]!r}", remedy="another version of the tool?")
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {tensor.name: float_dtype(tensor.dtype) for tensor in _plain(target)}
    for number, group in enumerate(_groups(target, names - kept), start=1):
        tensors = {
            name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in checkpoint.read(sorted(group)).items()
        }
        write_shard(folder / f"model-{number:05}.safetensors", tensors)


def _plain(target: ModelIR) -> Iterator[Tensor]:
    """What no format stores: norms, biases."""
    for layer in range(len(target.decoder.layers)):
        prefix, block = target.decoder.layer_prefix(layer), target.decoder.block(layer)
        biases = (tensor for linear in block.linears for tensor in linear.tensors() if tensor.name.endswith("bias"))
        yield from (replace(tensor, name=prefix + tensor.name) for tensor in (*block.tensors, *biases))


def _groups(target: ModelIR, names: set[str]) -> Iterator[set[str]]:
    """Names by layer, then those outside of all layers."""
    left = set(names)
    for layer in range(len(target.decoder.layers)):
        prefix = target.decoder.layer_prefix(layer)
        own = {name for name in left if name.startswith(prefix)}
        left -= own
        yield own
    if left:
        yield left

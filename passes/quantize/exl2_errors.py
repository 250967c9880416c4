"""What each option of a slot costs: the error of a layer's attention or MLP output, quantized each way, against the residual stream.

A slot is the attention or the MLP of one layer. Its error under an option is ‖y_q − y‖ / ‖y‖ with y the module's output
including the residual stream, on inputs of the unquantized model, as ExLlamaV2's measurement has it. What the allocator adds up
is the square: to second order the KL divergence is quadratic in a perturbation of the residual stream.

All layouts of a matrix are quantized in one pass over its rows, with one Hessian, permutation and factor. Results are kept per
layer, so an interrupted measurement goes on, and they serve any budget.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.algorithms.exl2 import factorize, quantize_parts
from passes.algorithms.knapsack import Unit, allocate
from passes.blocks.dense_model import DenseModel
from passes.blocks.input_statistics import InputStatistics
from passes.blocks.matrices import members
from passes.blocks.stream import BlockReplica, BlockStream, StreamedBlock
from passes.files.atomic import read_json, readable, write_json
from passes.formats.exllama.exl2 import Exl2
from passes.formats.exllama.exl2_options import ATTENTION, MLP
from passes.ir.model import Block, Linear, ModelIR
from passes.quantize.exl2 import apart, budget_bytes, in_attention, resolved_bytes, slot_bytes, stored_block
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.text.source import tokens_digest
from passes.text.split import fitted_part

if TYPE_CHECKING:
    import torch

#: Tokens whose outputs are compared: half a million numbers and more. Hessians see all of the text that choices are fitted to.
_COMPARED_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """The squared relative error of each row of `exl2_options.ATTENTION` and of `MLP` in one layer."""

    attention: tuple[float, ...]
    mlp: tuple[float, ...]


def measured_errors(dense: DenseModel, run: RunContext) -> list[LayerErrors]:
    """Return every option's error in every layer, on the part of the run's text that choices are fitted to; measured once, as a step."""
    key = content_key(*dense.identity, "exl2", tokens_digest(run.text))
    folder = run.folder / f"exl2-{key}"
    seen = run.on_text(fitted_part(run.text))
    run.steps.run(
        "measure EXL2",
        key,
        measured_layers(folder) >= len(dense),
        lambda report: measure(dense, seen.part(folder, report)),
    )
    shutil.rmtree(folder / "hidden", ignore_errors=True)
    return saved_errors(folder, len(dense))


def measure(dense: DenseModel, run: RunContext) -> None:
    """Measure every layer on the run's text; what its folder already holds is not measured again (`saved_errors` reads it)."""
    run.folder.mkdir(parents=True, exist_ok=True)
    inside = run.part(run.folder / "hidden")
    stream = BlockStream(dense, inside, _COMPARED_TOKENS, stored=apart(dense.ir))
    for block in stream.blocks(stream.resume(measured_layers(run.folder))):
        with block.loaded() as replicas:
            probe = _Probe(replicas[0], dense.ir.decoder.block(block.index))
            probe.run(block)
            errors = {slot: probe.errors(slot) for slot in ("attention", "mlp")}
            write_json(_errors_file(run.folder, block.index), errors)
        run.report(block.index + 1, len(dense))
    stream.hidden.clear()


def _errors_file(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:05d}.json"


def measured_layers(folder: Path) -> int:
    """Return how many layers, from the first one on, were measured."""
    return next(index for index in itertools.count() if not readable(_errors_file(folder, index)))


def saved_errors(folder: Path, layers: int) -> list[LayerErrors]:
    """Return what `measure` kept in a folder. Raises InputError where something is missing."""
    saved = [read_json(_errors_file(folder, index), "measurement") for index in range(layers)]
    return [LayerErrors(tuple(each["attention"]), tuple(each["mlp"])) for each in saved]


def allocate_exl2(ir: ModelIR, bpw: float, errors: Sequence[LayerErrors]) -> tuple[tuple[int, int], ...]:
    """Return the (attention, MLP) option of every layer with the least total error within `bpw` bits a weight. Exact."""
    units = []
    for layer, each in enumerate(errors):
        attention, mlp = slot_bytes(ir.decoder.block(layer))
        units.append(Unit(f"{layer}.attention", attention, each.attention))
        units.append(Unit(f"{layer}.mlp", mlp, each.mlp))
    choice = allocate(units, budget_bytes(ir, bpw)).choice
    return tuple(zip(choice[::2], choice[1::2], strict=True))


def in_divergence(
    ir: ModelIR, errors: Sequence[LayerErrors], costs: Mapping[str, Sequence[float]]
) -> list[LayerErrors]:
    """Express errors in units of KL: each slot's scaled so that its four-bit option costs what `passes.measure.fisher` says of four bits.

    `costs`: a matrix's full name -> its cost at four bits, first of its options. What an error does to the rest of the model
    differs from layer to layer; relative to the residual stream alone, a late layer's error counts as much as an early one's.
    """
    out = []
    for layer, each in enumerate(errors):
        block, prefix = ir.decoder.block(layer), ir.decoder.layer_prefix(layer)
        scales = {}
        for number, (slot, found) in enumerate((("attention", each.attention), ("mlp", each.mlp))):
            cost = sum(costs[prefix + linear.name][0] for linear in block.linears if _in_slot(linear, slot))
            error = found[_four_bits(slot_bytes(block)[number], block, slot)]
            # A slot whose output is nothing (its last matrix all zeros) loses nothing in any option.
            scales[slot] = cost / error if error else 0.0
        out.append(
            LayerErrors(
                tuple(error * scales["attention"] for error in each.attention),
                tuple(error * scales["mlp"] for error in each.mlp),
            )
        )
    return out


def _in_slot(linear: Linear, slot: str) -> bool:
    return linear.quantizable and in_attention(linear) == (slot == "attention")


def _four_bits(sizes: Sequence[int], block: Block, slot: str) -> int:
    """The option of a slot that comes nearest to four bits a weight."""
    weights = sum(linear.weights for linear in block.linears if _in_slot(linear, slot))
    return min(range(len(sizes)), key=lambda option: abs(8 * sizes[option] / weights - 4))


def uniform_exl2(ir: ModelIR, bpw: float, errors: Sequence[LayerErrors]) -> tuple[tuple[int, int], ...]:
    """Return one pair of options for all layers within `bpw`, the one with the least total error."""
    budget, layers = budget_bytes(ir, bpw), len(errors)
    pairs = itertools.product(range(len(errors[0].attention)), range(len(errors[0].mlp)))
    fitting = [pair for pair in pairs if resolved_bytes(ir, [pair] * layers) <= budget]
    best = min(fitting, key=lambda p: sum(each.attention[p[0]] + each.mlp[p[1]] for each in errors))
    return (best,) * layers


@dataclass
class _Call:
    """How a module was called on the first batch, and what it returned."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    output: Any = None


class _Probe:
    """One dense layer: its Hessians, how its attention and MLP are called, and their errors under every option."""

    def __init__(self, replica: BlockReplica, block: Block) -> None:
        self._replica, self._block = replica, block
        self._matrices = members(stored_block(block, 0, 0))
        self._hessians: dict[str, InputStatistics] = {}
        self._calls: dict[str, _Call] = {}
        self._stream: dict[str, float] = {}

    def run(self, block: StreamedBlock) -> None:
        """Send the text through the layer; gather statistics on the way."""
        handles = self._hooks()
        block.run([self._replica])
        for handle in handles:
            handle.remove()
        attended = _first(self._calls["attention"].output)
        sides = (block.stream.hidden.read(index, 0) for index in (block.index, block.index + 1))
        before, after = (states.to(self._replica.device).float() for states in sides)
        self._stream = {"attention": float((before + attended.float()).norm()), "mlp": float(after.norm())}

    def errors(self, slot: str) -> list[float]:
        """Return the squared relative error of each option of a slot."""
        import torch

        options = ATTENTION if slot == "attention" else MLP
        rows = [_layouts(self._block, slot, number) for number in range(len(options))]
        decoded = self._decoded(rows)
        module, call = self._slot(slot), self._calls[slot]
        reference = _first(call.output).float()
        dense = {name: self._weight(name) for name in rows[0]}
        norms = []
        for row in rows:
            for name, form in row.items():
                self._replica.put(f"{name}.weight", decoded[name, form])
            norms.append(_distance(module, call, reference))
        for name, weight in dense.items():
            self._replica.put(f"{name}.weight", weight)
        # Asked back once: a card waits for nothing between two options.
        return [(norm / self._stream[slot]) ** 2 for norm in torch.stack(norms).tolist()]

    def _weight(self, name: str) -> torch.Tensor:
        return self._replica.parameter(f"{name}.weight")

    def _slot(self, slot: str) -> torch.nn.Module:
        """The module that holds a slot's matrices: `self_attn`, `mlp`."""
        name = self._replica.decoder.path(_slot_linears(self._block, slot)[0].name)
        return self._replica.layer.get_submodule(name.partition(".")[0])

    def _decoded(self, rows: Sequence[Mapping[str, Exl2]]) -> dict[tuple[str, Exl2], torch.Tensor]:
        """Every matrix of a slot decoded from each of its distinct layouts; those that read one input together."""
        out = {}
        reads = {linear.name: linear.reads or linear.name for linear in self._matrices}
        dense = {name: self._weight(name) for name in rows[0]}
        together: dict[str, list[tuple[str, Exl2]]] = {}
        for name in rows[0]:
            together.setdefault(reads[name], []).extend(dict.fromkeys((name, row[name]) for row in rows))
        for source, wanted in together.items():
            factor = self._factor(source, f"block {self._replica.index} {wanted[0][0]}")
            parts = [(dense[name], form.layout(dense[name].shape[1])) for name, form in wanted]
            for (name, form), (_, weight) in zip(wanted, quantize_parts(parts, factor), strict=True):
                out[name, form] = weight.to(dense[name].dtype)
        return out

    def _factor(self, reads: str, where: str) -> Any:
        """The Hessian's factor; an expert that no token reached counts every input the same, as in the walk."""
        import torch

        inputs = self._hessians[reads]
        hessian = inputs.hessian(where)
        return factorize(hessian if inputs.tokens else torch.eye(len(hessian), device=self._replica.device), where)

    def _hooks(self) -> list[Any]:
        handles = []
        seen: set[str] = set()
        for linear in self._matrices:
            reads = linear.reads or linear.name
            if linear.quantizable and reads not in seen:
                seen.add(reads)
                self._hessians[reads] = InputStatistics(linear.in_features, self._replica.device)
                module = self._replica.module(linear.name)
                handles.append(module.register_forward_pre_hook(self._gather(reads)))
        for slot in ("attention", "mlp"):
            handles.append(self._slot(slot).register_forward_hook(self._note(slot), with_kwargs=True))
        return handles

    def _gather(self, reads: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def gather(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._hessians[reads].add(args[0])

        return gather

    def _note(self, slot: str) -> Callable[..., None]:
        def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            self._calls.setdefault(slot, _Call(args, kwargs, output))

        return note


def _layouts(block: Block, slot: str, option: int) -> dict[str, Exl2]:
    """The layout of every matrix of a slot under one option."""
    stored = stored_block(block, option if slot == "attention" else 0, option if slot == "mlp" else 0)
    return {linear.name: linear.storage for linear in _slot_linears(stored, slot) if isinstance(linear.storage, Exl2)}


def _slot_linears(block: Block, slot: str) -> list[Linear]:
    """Every quantizable matrix of a slot."""
    return [linear for linear in members(block) if _in_slot(linear, slot)]


def _distance(module: torch.nn.Module, call: _Call, reference: torch.Tensor) -> torch.Tensor:
    """How far a module's output for a call is from another one: ‖y − y₀‖, still where it was computed."""
    import torch

    with torch.no_grad():
        found = _first(module(*call.args, **(call.kwargs or {}))).float()
    distance: torch.Tensor = (found - reference).norm()
    return distance


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found

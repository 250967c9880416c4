"""The transformers model of any decoder family, run one block at a time.

The model is built on the meta device: it weighs nothing. What surrounds the blocks (embedding, masks, rotary tables, final
norm, head, soft caps) is the family's own code, run with the blocks replaced by stubs that record how each block is called
and hand the hidden states through. So a family needs no re-implementation here; what it needs is a list of decoder layers.

Checkpoints name some tensors otherwise than the classes do (transformers keeps the list), keep experts apart that the classes
stack, and the other way round. Names here are the description's; `module` finds what they mean in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from passes.blocks.dense_model import DenseModel
from passes.blocks.model_class import Names, body, skeleton
from passes.blocks.unfused import unfuse, unstack
from passes.errors import InputError
from passes.ir.architectures.config import Config
from passes.ir.model import ModelIR
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


#: Families whose blocks return a pair, the hidden states first.
_PAIRS = frozenset({"bloom", "falcon", "glm_moe_dsa", "gptj", "mpt"})
#: What families call the cache that a block writes to.
_CACHES = ("past_key_values", "layer_past", "past_key_value")


@dataclass(frozen=True)
class LayerCall:
    """How the family's code calls one block, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def _alike(call: LayerCall, other: LayerCall) -> bool:
    """Whether two batches' calls of a block have the same values. What blocks hand on is theirs alone
    (`passes.blocks.model_class.unwalkable`)."""
    import torch

    if call is other:
        return True
    pairs = [
        *zip(call.args, other.args, strict=True),
        *((call.kwargs[key], other.kwargs.get(key)) for key in call.kwargs),
    ]
    for first, second in pairs:
        if isinstance(first, torch.Tensor) and not (isinstance(second, torch.Tensor) and torch.equal(first, second)):
            return False
    return True


class CacheMaxima:
    """Stands in for a KV cache: notes the largest magnitude that a layer writes, and returns keys and values unchanged.

    Keys arrive as an engine caches them: after the rotary embedding and any norm. A card is not waited for before the end.
    """

    def __init__(self) -> None:
        self._seen: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `transformers.Cache.update` is called as."""
        import torch

        largest = keys.abs().amax(), values.abs().amax()
        before = self._seen.get(keys.device, largest)
        self._seen[keys.device] = (torch.maximum(before[0], largest[0]), torch.maximum(before[1], largest[1]))
        return keys, values

    @property
    def seen(self) -> bool:
        """Whether anything was written."""
        return bool(self._seen)

    @property
    def keys(self) -> float:
        """The largest magnitude of a key."""
        return max(float(keys) for keys, _ in self._seen.values())

    @property
    def values(self) -> float:
        """The largest magnitude of a value."""
        return max(float(values) for _, values in self._seen.values())

    def get_seq_length(self, *_: Any) -> int:
        """Return the tokens that are cached before: none."""
        return 0


class Decoder:
    """A causal language model of `transformers` whose weights come and go block by block.

    `stored`: how its matrices are going to be stored; fused ones are modules of their own where their parts are.
    """

    def __init__(
        self, dense: DenseModel, dtype: torch.dtype, device: torch.device, stored: ModelIR | None = None
    ) -> None:
        ir = dense.ir
        self.ir = ir
        self.weights = dense.weights
        self.dtype = dtype
        self.device = device
        self._model = skeleton(ir, dtype)
        for name, buffer in list(self._model.named_buffers()):
            _set(self._model, name, buffer.to(device))
        self._body, self._list = body(self._model, ir)
        self._layers = list(getattr(self._body, self._list))
        self._calls: dict[tuple[int, ...], list[LayerCall]] = {}
        self._names = Names(self._model)
        for index, layer in enumerate(self._layers):
            block = ir.decoder.block(index)
            unstack(layer, block, self._names)
            if stored is not None:
                unfuse(layer, block, stored.decoder.block(index), self._names)

    def __len__(self) -> int:
        return len(self._layers)

    def embed(self, ids: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield hidden states before the first block, one batch of token ids `[B, T]` after the other. Run it to its end."""
        import torch

        with self._outer_weights(self._body):
            for batch in ids:
                stubs = self._stub()
                with torch.no_grad():
                    self._body(input_ids=batch.to(self.device), use_cache=False)
                calls = [LayerCall(stub.args, stub.kwargs) for stub in stubs]
                if not all(map(_alike, self._calls.setdefault(tuple(batch.shape), calls), calls)):
                    raise InputError(
                        f"transformers' {type(self._layers[0]).__name__} is given values of each batch's own beside the hidden states",
                        remedy="such a model cannot be walked here; an outside backend may take it",
                    )
                yield stubs[0].hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits `[B, T, vocabulary]` of hidden states after the last block, in `with head():` only. Gradients flow back."""
        import torch

        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
        self._stub(replacement=hidden)
        with torch.set_grad_enabled(hidden.requires_grad):
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits

    def final(self, hidden: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield what the output head reads: each batch of hidden states through the family's final norm."""
        import torch

        with self._outer_weights(self._body):
            for batch in hidden:
                self._stub(replacement=batch)
                ids = torch.zeros(batch.shape[:2], dtype=torch.long, device=self.device)
                with torch.no_grad():  # never around a yield: two of these that end in turn would leave it switched off
                    states = self._body(input_ids=ids, use_cache=False).last_hidden_state
                yield states

    @contextmanager
    def head(self) -> Iterator[None]:
        """Hold embedding, final norm and head in memory, for `logits`."""
        with self._outer_weights(self._model):
            yield

    @contextmanager
    def block(self, index: int, tensors: Mapping[str, torch.Tensor]) -> Iterator[torch.nn.Module]:
        """Hold one block with its weights (`tensors`: by name relative to the block) in memory."""
        layer = self._layers[index]
        buffers = dict(layer.named_buffers())
        named = self._names.parameters(tensors)
        _fill(layer, named, self.dtype, self.device, f"block {index}")
        for name in buffers.keys() & named.keys():
            _set(layer, name, named[name].to(self.device))
        layer.eval()
        try:
            yield layer
        finally:
            layer.to("meta")
            for name, buffer in buffers.items():
                _set(layer, name, buffer)

    def path(self, name: str) -> str:
        """Return where a block has what the description calls `name`."""
        return self._names.path(name)

    def module(self, layer: torch.nn.Module, name: str) -> torch.nn.Module:
        """Return what the description calls `name` in a block."""
        try:
            return layer.get_submodule(self.path(name))
        except AttributeError:
            raise InputError(
                f"transformers' {type(layer).__name__} has no module {name}: its experts cannot be worked on one by one",
                remedy="choose round-to-nearest, or an outside backend",
            ) from None

    def parameter(self, layer: torch.nn.Module, name: str) -> torch.Tensor:
        """Return what a block computes with under a name of the description, such as `mlp.up_proj.weight`."""
        module, _, leaf = name.rpartition(".")
        return self.module(layer, module).get_parameter(leaf)

    def put(self, layer: torch.nn.Module, name: str, value: torch.Tensor) -> None:
        """Have a block compute with another value under that name."""
        module, _, leaf = name.rpartition(".")
        _assign(self.module(layer, module), leaf, value.to(self.device, self.dtype))

    def run(
        self, layer: Callable[..., Any], index: int, hidden: torch.Tensor, cache: CacheMaxima | None = None
    ) -> torch.Tensor:
        """Return a block's output for hidden states `[B, T, D]` of a shape whose ids went through `embed`. Gradients flow back."""
        import torch

        call = self._calls[tuple(hidden.shape[:2])][index]
        kwargs = dict(call.kwargs)
        if cache is not None:
            kwargs |= {name: cache for name in _CACHES if name in kwargs}
        if "prev_topk_indices" in kwargs:
            kwargs["prev_topk_indices"] = self._every_position(hidden)
        with torch.set_grad_enabled(hidden.requires_grad):
            out = layer(hidden, *call.args, **kwargs)
        output: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return output

    def _every_position(self, hidden: torch.Tensor) -> torch.Tensor:
        """What an indexer picks of a text no longer than its limit, `[B, T, T]`, for the layers that use an earlier layer's choice."""
        import torch

        length, limit = hidden.shape[1], Config(self.ir.config, self.ir.name).integer("index_topk", default=2048)
        if length > limit:
            raise InputError(
                f"calibration texts of {length} tokens, of which each layer's indexer picks {limit}",
                remedy=f"set the text's length to at most {limit}",
            )
        return torch.arange(length, device=hidden.device).expand(len(hidden), length, length)

    def _stub(self, replacement: torch.Tensor | None = None) -> list[Any]:
        as_pair = self.ir.model_type in _PAIRS
        stubs = [
            _stub_class()(layer, replacement if index == 0 else None, as_pair)
            for index, layer in enumerate(self._layers)
        ]
        self._set_layers(stubs)
        return stubs

    def _set_layers(self, layers: Iterable[torch.nn.Module] = ()) -> None:
        import torch

        setattr(self._body, self._list, torch.nn.ModuleList(layers))

    @contextmanager
    def _outer_weights(self, root: torch.nn.Module) -> Iterator[None]:
        self._set_layers()
        prefix = next((f"{name}." for name, module in self._model.named_modules() if module is root and name), "")
        wanted = {prefix + name for name, _ in root.named_parameters()}
        stored = {name: name for name in wanted} | {self._names.outer(name): name for name in self.ir.outer_names()}
        present = {stored[path]: path for path in sorted(wanted) if stored[path] in self.weights}
        for name, tensor in self.weights.read(present).items():
            _assign(self._model, present[name], tensor.to(self.device, self.dtype))
        self._model.tie_weights()
        missing = [name for name, parameter in root.named_parameters() if parameter.is_meta]
        if missing:
            raise InputError(f"the checkpoint lacks {', '.join(missing[:3])}", remedy="check that it is complete")
        try:
            yield
        finally:
            self._set_layers()
            for name, parameter in list(self._model.named_parameters()):
                _assign(self._model, name, parameter.to("meta"))
            self._model.tie_weights()


def _fill(
    module: Any, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device, where: str
) -> None:
    known = dict(module.named_parameters())
    missing = sorted(set(known) - set(tensors))
    if missing:
        raise InputError(
            f"{where}: transformers' class wants tensors that the checkpoint names otherwise: {', '.join(missing[:3])}",
            remedy="this layout is not supported by the calibrated walk yet; choose round-to-nearest or an outside backend",
        )
    for name, parameter in known.items():
        if tuple(tensors[name].shape) != tuple(parameter.shape):
            raise InputError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)}, config.json asks for {tuple(parameter.shape)}",
                remedy="config.json and weights do not belong together",
            )
        _assign(module, name, tensors[name].to(device, dtype))


def _assign(root: Any, name: str, tensor: torch.Tensor) -> None:
    import torch

    _set(root, name, torch.nn.Parameter(tensor, requires_grad=False))


def _set(root: Any, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(path) if path else root, leaf, value)


def _stub_class() -> Any:
    """The stand-in of a block: records its call, returns its input (or a replacement). A class of its own once torch is there."""
    import torch

    class Stub(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module, replacement: torch.Tensor | None, as_pair: bool) -> None:
            super().__init__()
            self.__dict__["layer"] = layer
            self.replacement = replacement
            self.as_pair = as_pair

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.__dict__["layer"], name)

        def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.hidden, self.args, self.kwargs = hidden, args, kwargs
            out = hidden if self.replacement is None else self.replacement
            return (out, None) if self.as_pair else out

    return Stub

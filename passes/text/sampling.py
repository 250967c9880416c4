"""Draws sequences from a model, a token of every row at a time: by a plain loop, and on a card by one replayed CUDA graph.

Both draw by inversion of the distribution function, from uniform numbers that are made beforehand on the processor, so that no step
waits for the host. A graph replays what one `StaticStep` does. It needs fixed shapes and nothing that Python decides by a tensor's
value or by a number of its own: `obstacle` says which models are known to give that, and a step that waits for the host, cannot be
captured, or is replayed with another outcome than it has by itself is found out before it is used. Those write by the plain loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Told how many tokens the rows have.
Told = Callable[[int], None]
#: Replays are queued far ahead of the card: it is waited for after so many tokens, so that what is told has happened.
_TOLD_EVERY = 32
#: Steps in which a replayed graph must write what the step itself writes.
_COMPARED = 2
#: Copies of a row's logits at once: the model's, in fp32, softmax, running sum.
_LOGITS = 4


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw a token of each row: logits `[rows, vocabulary]`, numbers in [0, 1) `[rows]`, ids int64 `[rows]`.

    By inversion of the distribution function: a tenth of torch.multinomial's time on a processor.
    """
    import torch

    rows = len(logits)
    # Never of a single row: a card sums that in an order that varies from run to run.
    cumulative = torch.softmax(logits.float(), dim=-1).expand(max(rows, 2), -1).cumsum(dim=-1)[:rows]
    drawn = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, drawn)[:, 0].clamp(max=cumulative.shape[1] - 1)


def write_plainly(model: Any, opening: torch.Tensor, uniforms: torch.Tensor, told: Told) -> torch.Tensor:
    """Write on from `opening` `[rows, n]`, a token for each line of `uniforms` `[more, rows]`: ids int64 `[rows, n + more]`."""
    import torch

    rows, begun = opening.shape
    ids = torch.empty(rows, begun + len(uniforms), dtype=torch.int64, device=model.device)
    ids[:, :begun] = opening
    uniforms = uniforms.to(model.device)
    cache, read = None, 0
    with torch.inference_mode():
        for position in range(begun, ids.shape[1]):
            out = model(input_ids=ids[:, read:position], past_key_values=cache, use_cache=True)
            cache, read = out.past_key_values, position
            ids[:, position] = draw(out.logits[:, -1], uniforms[position - begun])
            told(position + 1)
    return ids.cpu()


def obstacle(model: Any) -> str:
    """Say why a model's step cannot be one of fixed shapes; nothing where it can.

    It can where transformers says that the class compiles whole and every layer's cache is one of keys and values: full, sliding or
    chunked attention. States of other kinds (linear attention, convolutions, indexers, compressed caches) count in Python.
    """
    from transformers.cache_utils import StaticCache, StaticLayer, StaticSlidingWindowLayer

    if not model._can_compile_fullgraph:
        return f"{type(model).__name__} does not compile whole"
    try:
        layers = StaticCache(config=model.config, max_cache_len=1).layers
    except KeyError as error:
        return f"no cache of fixed size for layers of {error}"
    others = {type(layer).__name__ for layer in layers if type(layer) not in (StaticLayer, StaticSlidingWindowLayer)}
    return f"no cache of fixed size: {', '.join(sorted(others))}" if others else ""


class StaticStep:
    """One more token of every row, in buffers that stay where they are: `begin` reads the openings, each call after it writes a token.

    The caches of sliding layers are as long as the text here: transformers' own counts in Python when they are full, which a graph
    would not do again. Their masks keep the window.
    """

    def __init__(self, model: Any, rows: int, length: int) -> None:
        """Prepare for `rows` sequences of `length` tokens; the cache is allocated by the first `begin`."""
        import torch
        from transformers.cache_utils import Cache, StaticCache, StaticLayer

        layers = len(StaticCache(config=model.config, max_cache_len=length).layers)
        self._model, self._cache = model, Cache(layers=[StaticLayer(max_cache_len=length) for _ in range(layers)])
        self.ids = torch.zeros(rows, length, dtype=torch.int64, device=model.device)
        self._uniforms = torch.zeros(length, rows, dtype=torch.float32, device=model.device)
        self._last = torch.zeros(1, dtype=torch.int64, device=model.device)

    def begin(self, opening: torch.Tensor, uniforms: torch.Tensor) -> None:
        """Start anew: read `opening` `[rows, n]` and draw the token behind it. `uniforms` `[length - n, rows]`: for all to come."""
        begun = opening.shape[1]
        self._cache.reset()
        self.ids[:, :begun] = opening
        self._uniforms[begun:] = uniforms
        out = self._model(input_ids=self.ids[:, :begun], past_key_values=self._cache, use_cache=True)
        self.ids[:, begun] = draw(out.logits[:, -1], self._uniforms[begun])
        self._last.fill_(begun)

    def __call__(self) -> None:
        """Read every row's last token and write the next. Every position comes from tensors: the cache's own and `_last`."""
        token = self.ids.index_select(1, self._last)
        out = self._model(input_ids=token, past_key_values=self._cache, use_cache=True)
        self._last.add_(1)
        drawn = draw(out.logits[:, -1], self._uniforms.index_select(0, self._last)[0])
        self.ids.index_copy_(1, self._last, drawn[:, None])


def write_in_place(
    step: StaticStep, again: Callable[[], None], opening: torch.Tensor, uniforms: torch.Tensor, told: Told
) -> torch.Tensor:
    """Write as `write_plainly` does, in the step's buffers. `again`: the step itself, or the replay of a graph of it."""
    import torch

    with torch.inference_mode():
        step.begin(opening, uniforms)
        for position in range(opening.shape[1] + 1, step.ids.shape[1]):
            again()
            if (position + 1) % _TOLD_EVERY == 0:
                if step.ids.is_cuda:
                    torch.cuda.synchronize(step.ids.device)
                told(position + 1)
        return step.ids.cpu()


class CardWriter:
    """Writes on a card: by a graph of the step where there can be one, else by the plain loop."""

    def __init__(self, model: Any) -> None:
        """Take a model that lies on a card."""
        self._model, self._obstacle = model, obstacle(model)
        self._made: tuple[StaticStep, Callable[[], None]] | None = None

    @property
    def how(self) -> str:
        """Say, for people, that tokens come from a graph, or why they do not."""
        return f"no CUDA graph: {self._obstacle}" if self._obstacle else "CUDA graph"

    def __call__(self, opening: torch.Tensor, uniforms: torch.Tensor, told: Told) -> torch.Tensor:
        """Write as `write_plainly` does. A graph is made for the first text, and anew for one of other shape."""
        import torch

        if not self._obstacle and len(uniforms) > _COMPARED:
            try:
                return write_in_place(*self._graph(opening, uniforms), opening, uniforms, told)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError) as error:
                self._obstacle = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._made = None
        return write_plainly(self._model, opening, uniforms, told)

    def _graph(self, opening: torch.Tensor, uniforms: torch.Tensor) -> tuple[StaticStep, Callable[[], None]]:
        rows, length = opening.shape[0], opening.shape[1] + len(uniforms)
        if self._made is None or self._made[0].ids.shape != (rows, length):
            self._made = None
            step = StaticStep(self._model, rows, length)
            self._made = step, captured(step, opening, uniforms)
        return self._made


def captured(step: StaticStep, opening: torch.Tensor, uniforms: torch.Tensor) -> Callable[[], None]:
    """Return what replays a graph of the step. The texts are only to try it with: at least three lines of `uniforms`.

    Raises RuntimeError where the step waits for the host, cannot be captured, or is replayed with another outcome.
    """
    import torch

    known = slice(opening.shape[1] + 1 + _COMPARED)
    with torch.inference_mode(), torch.cuda.device(step.ids.device):
        step.begin(opening, uniforms)
        step()  # what torch and its libraries make ready at first use, and wait for
        for _ in range(_COMPARED - 1):
            _without_waiting(step)
        expected = step.ids[:, known].clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
        step.begin(opening, uniforms)
        for _ in range(_COMPARED):
            graph.replay()
        if not torch.equal(step.ids[:, known], expected):
            raise RuntimeError("a replayed step writes other tokens than the step itself")
    return graph.replay


def _without_waiting(step: Callable[[], None]) -> None:
    """Run the step; torch raises RuntimeError where it waits for the card. A capture that meets this leaves the card's stream broken."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def row_bytes(model: Any, opening: torch.Tensor, length: int) -> int:
    """Return what a row of `length` tokens takes on the card beside the weights: keys and values, other states, logits.

    Measured on `opening` `[1, n]`, which the model reads: keys and values grow with the length, states do not.
    """
    import torch

    with torch.inference_mode():
        out = model(input_ids=opening.to(model.device), use_cache=True)
    held, logits = 0.0, int(out.logits.shape[-1]) * _LOGITS * 4
    for layer in out.past_key_values.layers:
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                held += value.nbytes * (length / opening.shape[1] if name in ("keys", "values") else 1)
    return int(held) + logits

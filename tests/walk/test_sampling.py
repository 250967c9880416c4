"""A step in fixed buffers, and a graph of it, write what the plain loop writes. The graph is one that a processor plays.

What this does not show: that CUDA captures the step, and how fast it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from passes.errors import TightfitError
from passes.text import sampling, self_written
from passes.text.sampling import CardWriter, StaticStep, obstacle, row_bytes, write_in_place, write_plainly
from passes.text.source import TextSource, token_blocks
from tests.walk.families import save_tiny

Text = tuple[torch.Tensor, torch.Tensor]
ROWS, BEGUN, LENGTH = 5, 2, 40
#: Sliding windows of Gemma and Mistral here, chunks of Llama 4: the text outgrows them.
WINDOW = {"sliding_window": 8}
REPLAYED: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "gemma2": WINDOW, "gemma3_text": WINDOW, "mistral": WINDOW,
    "llama4_text": {"attention_chunk_size": 8},
}  # fmt: skip
_WAITS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


class PlayedGraph(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a CUDA graph does, with a processor's operations: those of one call are written down and done again, on the same memory.

    Numbers that Python computed on the way stay what they were. What would make the host wait for the card cannot be written down.
    Writing down leaves memory as it is, unless it `computes`.
    """

    def __init__(self, computes: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._computes = computes
        self._done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _WAITS:
            raise RuntimeError(f"{func._schema.name} waits for the card")
        idle = func._schema.is_mutable and not self._computes
        out = args[0] if idle else func(*args, **(kwargs or {}))
        self._done.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self._done:
            places = {value.untyped_storage().data_ptr() for value in tensors((args, kwargs))}
            if func._schema.is_mutable:
                func(*args, **kwargs)
            elif not all(value.untyped_storage().data_ptr() in places for value in tensors(out)):
                for kept, made in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                    kept.copy_(made)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class PlayedStream:
    """A stream on which everything has happened."""

    def __init__(self, *device: Any) -> None: ...

    def wait_stream(self, other: PlayedStream) -> None: ...


@pytest.fixture
def played_card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda where what it does is done by the processor. Lists the graphs that were made."""
    made: list[str] = []
    watching: list[PlayedGraph] = []

    @contextmanager
    def graph(playing: PlayedGraph, capture_error_mode: str) -> Iterator[None]:
        made.append(capture_error_mode)
        with playing:
            yield

    def watch(mode: Any) -> None:
        if mode == "error":
            watching.append(PlayedGraph(computes=True))
            watching[-1].__enter__()  # type: ignore[no-untyped-call]
        elif watching:
            watching.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    fakes: dict[str, Callable[..., Any] | type] = {
        "Stream": PlayedStream, "current_stream": PlayedStream, "CUDAGraph": PlayedGraph, "graph": graph,
        "get_sync_debug_mode": lambda: 0, "set_sync_debug_mode": watch, "device": nothing, "stream": nothing,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


def nothing(_: Any) -> AbstractContextManager[None]:
    return nullcontext()


def text(model: Any, seed: int = 3, length: int = LENGTH) -> Text:
    generator = torch.Generator().manual_seed(seed)
    opening = torch.randint(model.config.vocab_size, (ROWS, BEGUN), generator=generator)
    return opening, torch.rand(length - BEGUN, ROWS, generator=generator)


def ignored(position: int) -> None: ...


@pytest.mark.parametrize("family", REPLAYED)
def test_a_step_in_fixed_buffers_and_its_graph_write_what_the_plain_loop_writes(
    family: str, tmp_path: Path, played_card: list[str]
) -> None:
    model = save_tiny(family, tmp_path, **REPLAYED[family])
    assert obstacle(model) == ""
    plain = write_plainly(model, *text(model), ignored)
    step = StaticStep(model, ROWS, LENGTH)
    for _ in range(2):
        assert torch.equal(write_in_place(step, step, *text(model), ignored), plain)
    writer = CardWriter(model)
    assert torch.equal(writer(*text(model), ignored), plain) and writer.how == "CUDA graph"
    assert torch.equal(writer(*text(model, 4), ignored), write_plainly(model, *text(model, 4), ignored))
    assert len(played_card) == 1


def test_another_shape_has_a_graph_of_its_own(tmp_path: Path, played_card: list[str]) -> None:
    model = save_tiny("llama", tmp_path)
    writer = CardWriter(model)
    for length, graphs in ((12, 1), (20, 2), (BEGUN + 3, 3), (BEGUN + 2, 3), (BEGUN + 1, 3)):
        assert torch.equal(
            writer(*text(model, 3, length), ignored), write_plainly(model, *text(model, 3, length), ignored)
        )
        assert len(played_card) == graphs


def test_a_cache_that_counts_in_python_is_found_out_and_said(
    tmp_path: Path, played_card: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own fixed cache of a sliding layer."""
    from transformers import cache_utils

    model = save_tiny("gemma3_text", tmp_path, sliding_window=5, layer_types=["sliding_attention"] * 2)
    plain = write_plainly(model, *text(model), ignored)
    writer = CardWriter(model)
    sliding = cache_utils.StaticSlidingWindowLayer
    assert [type(layer) for layer in cache_utils.StaticCache(config=model.config, max_cache_len=8).layers] == [
        sliding
    ] * 2
    monkeypatch.setattr(cache_utils, "StaticLayer", lambda max_cache_len: sliding(max_cache_len, sliding_window=5))
    assert torch.equal(writer(*text(model), ignored), plain)
    assert (
        writer.how == "no CUDA graph: a replayed step writes other tokens than the step itself"
        and len(played_card) == 1
    )


def test_a_step_that_waits_for_the_card_is_said_and_not_captured(
    tmp_path: Path, played_card: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny("llama", tmp_path)
    plain = write_plainly(model, *text(model), ignored)
    forward = type(model.model.norm).forward
    monkeypatch.setattr(
        type(model.model.norm), "forward", lambda norm, hidden: forward(norm, hidden) if hidden.sum().item() else hidden
    )
    writer = CardWriter(model)
    assert torch.equal(writer(*text(model), ignored), plain)
    assert writer.how == "no CUDA graph: aten::item waits for the card" and not played_card


def test_a_card_without_memory_is_no_reason_for_another_loop(
    tmp_path: Path, played_card: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny("llama", tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", full)
    with pytest.raises(torch.OutOfMemoryError):
        CardWriter(model)(*text(model), ignored)


@pytest.mark.parametrize(
    ("family", "said"),
    [("mpt", "MptForCausalLM does not compile whole"), ("qwen3_next", "no cache of fixed size: LinearAttentionLayer")],
)
def test_models_that_cannot_be_replayed_are_known_beforehand(
    family: str, said: str, tmp_path: Path, played_card: list[str]
) -> None:
    writer = CardWriter(model := save_tiny(family, tmp_path))
    assert writer.how == f"no CUDA graph: {said}"
    assert torch.equal(writer(*text(model, length=8), ignored), write_plainly(model, *text(model, length=8), ignored))
    assert not played_card


def test_a_row_takes_keys_and_values_for_its_length(tmp_path: Path) -> None:
    """2 blocks of 2 KV heads, 16 wide, fp32; four copies of 300 logits."""
    model = save_tiny("llama", tmp_path)
    opening = text(model)[0]
    grown = [row_bytes(model, opening[:1], length) for length in (LENGTH, 2 * LENGTH)]
    assert grown[1] - grown[0] == LENGTH * 2 * 2 * 2 * 16 * 4
    assert 0 <= grown[0] - LENGTH * 2 * 2 * 2 * 16 * 4 - 300 * 4 * 4 < 100


def test_progress_is_told_as_it_happens(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path)
    positions: list[int] = []
    write_in_place(step := StaticStep(model, ROWS, 70), step, *text(model, length=70), positions.append)
    assert positions == [32, 64]


@pytest.fixture
def on_card(played_card: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A machine whose first device is such a card; its memory, whole and free, as given."""
    memory = {"whole": 2**30, "free": 2**30}
    monkeypatch.setattr(self_written, "compute_devices", lambda: (torch.device("cuda", 0),))
    monkeypatch.setattr(self_written, "memory_bytes", lambda _: memory["whole"])
    monkeypatch.setattr(self_written, "_free_on", lambda _: memory["free"])
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, *_: model)
    return memory


def test_a_card_writes_more_rows_at_once_and_draws_with_the_same_numbers(
    llama: Path, tmp_path: Path, on_card: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it kept is its own: with another number of rows it would have written other text."""
    source, said = TextSource("self", 70, 12, seed=2), set()

    def report(done: int, total: int, detail: str = "") -> None:
        said.add(detail)

    monkeypatch.setattr(sampling, "_TOLD_EVERY", 4)
    text = token_blocks(source, llama, tmp_path / "parts", report)
    assert said == {"CUDA graph"}
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["cuda-0000000-70.safetensors"]
    monkeypatch.setattr(self_written, "compute_devices", lambda: (torch.device("cpu"),))
    assert torch.equal(text, token_blocks(source, llama, tmp_path / "parts", report))
    assert len(list((tmp_path / "parts").iterdir())) == 3 and said == {"CUDA graph", ""}


def test_a_small_card_writes_fewer_rows_at_once(llama: Path, tmp_path: Path, on_card: dict[str, int]) -> None:
    """A row of 12 tokens takes about 17 KiB here, the weights 724 KiB."""
    on_card["whole"] = 2**20
    token_blocks(TextSource("self", 20, 12), llama, tmp_path / "parts")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        f"cuda-{first:07d}-{rows}.safetensors" for first, rows in ((0, 8), (8, 8), (16, 4))
    ]


@pytest.mark.parametrize(
    ("free", "said"), [(2**19, "does not fit in cuda:0"), (3 * 2**19, "to write calibration text takes")]
)
def test_a_card_that_others_have_taken_is_said_to_be_full(
    free: int, said: str, llama: Path, on_card: dict[str, int]
) -> None:
    on_card["free"] = free
    with pytest.raises(TightfitError, match=said):
        token_blocks(TextSource("self", 256, 40), llama)

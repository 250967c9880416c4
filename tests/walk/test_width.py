"""Width pruning: uniform widths, the best units, least squares for what is gone; an ordinary checkpoint of exactly the predicted bytes."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from passes.algorithms.removal.importance import eliminated, energy
from passes.algorithms.removal.least_squares import compensated, solved
from passes.blocks.dense_model import DenseModel
from passes.chain import from_json, illegal, to_json
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.ir import catalog
from passes.ir.sources import open_model
from passes.ir.state import FullKV
from passes.kv_cache import KVCachePass
from passes.prune import sensitivity
from passes.prune.narrow import Narrowing
from passes.prune.sensitivity import unit_scores
from passes.prune.units import units_of
from passes.prune.width import IMPORTANCES, WidthPrune
from passes.quantize.quantize import Quantize
from passes.run.execute import execute
from passes.run.job import Job
from passes.steps.progress import Progress
from passes.text.source import TextSource
from passes.walk.edit import EditingWalk
from tests.walk.conftest import context, save_family

IDS = torch.randint(3, 250, (8, 24), generator=torch.Generator().manual_seed(1))


def dense_of(folder: Path) -> DenseModel:
    return DenseModel(open_model(folder).ir, Checkpoint(folder), (folder.name,))


def pruned(pass_: WidthPrune, dense: DenseModel, folder: Path) -> DenseModel:
    assert pass_.illegal(dense.ir) == ()
    folder.mkdir(exist_ok=True)
    return pass_.dense(dense, context(folder, IDS))


def logits_of(dense: DenseModel) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(dense.folder(context(Path(), IDS)))
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


def inputs_and_weight(rows: int = 200, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator) @ mixing, torch.randn(10, width, generator=generator)


def test_compensation_is_the_least_squares_solution() -> None:
    x_TK, weight = inputs_and_weight()
    kept = torch.tensor([0, 3, 4, 7, 8, 11, 15, 20])
    wanted = torch.linalg.lstsq(x_TK[:, kept].double(), (x_TK @ weight.T).double()).solution.T
    found, free = solved(weight, x_TK.T @ x_TK, kept, damping=0.0)
    assert torch.allclose(found.double(), wanted, atol=1e-2) and free == pytest.approx(len(kept), rel=0.6)

    def error(narrow: torch.Tensor) -> float:
        return float((x_TK @ weight.T - x_TK[:, kept] @ narrow.T).square().sum())

    assert error(found) < 0.9 * error(weight[:, kept])


def test_without_what_adds_nothing_everything_stays() -> None:
    x_TK, weight = inputs_and_weight()
    x_TK[:, 5], weight[:, 9] = 0.0, 0.0
    hessian = x_TK.T @ x_TK
    kept = torch.tensor([column for column in range(24) if column not in (5, 9)])
    assert torch.allclose(compensated(weight, hessian, kept, len(x_TK)).weight, weight[:, kept], atol=1e-6)
    columns = torch.arange(24)[:, None]
    assert set(eliminated(weight, hessian, columns, 22, damping=1e-4).tolist()) == set(kept.tolist())
    assert set(energy(weight, hessian, columns).argsort()[:2].tolist()) == {5, 9}


def test_little_text_is_damped_more_and_what_others_know_is_made_up_for() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, kept = torch.randn(10, 64, generator=generator), torch.arange(48)
    apart = torch.randn(200, 64, generator=generator)  # no input tells of another
    found = [compensated(weight, x_TK.T @ x_TK, kept, len(x_TK)).damping for x_TK in (apart[:80], apart)]
    assert found[0] >= found[1] >= 1.0
    told = torch.randn(4000, 48, generator=generator)
    told = torch.cat([told, told[:, :16] * 0.9 + 0.1 * told[:, 16:32]], 1)  # the last are known from the others
    assert compensated(weight, told.T @ told, kept, len(told)).damping <= 0.1


@pytest.mark.parametrize("width", [1, 3])
def test_the_unit_that_goes_is_the_one_that_costs_least_when_the_others_make_up_for_it(width: int) -> None:
    x_TK, weight = inputs_and_weight()
    hessian, columns = x_TK.T @ x_TK, torch.arange(24).view(-1, width)

    def loss(gone: int) -> float:
        kept = torch.cat([unit for number, unit in enumerate(columns) if number != gone])
        solution = torch.linalg.lstsq(x_TK[:, kept], x_TK @ weight.T)
        return float((x_TK @ weight.T - x_TK[:, kept] @ solution.solution).square().sum())

    cheapest = min(range(len(columns)), key=loss)
    left = eliminated(weight, hessian, columns, len(columns) - 1, damping=1e-6).tolist()
    assert sorted({*range(len(columns))} - {*left}) == [cheapest]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2", "phi3", "starcoder2"])
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_family_loads_with_exactly_the_predicted_tensors(family: str, importance: str, tmp_path: Path) -> None:
    dense = dense_of(save_family(family, tmp_path / "source", torch.float32))
    made = pruned(WidthPrune(96, 1, importance), dense, tmp_path / "work")
    assert {t.name: t for t in made.ir.tensors()} == {t.name: t for t in Checkpoint(made.weights.folder).describe()}
    found = open_model(made.weights.folder).ir
    assert found.stacks == made.ir.stacks and found.tensor_bytes == made.ir.tensor_bytes
    assert bool(logits_of(made).isfinite().all())


def test_channels_and_groups_that_add_nothing_go_and_nothing_changes(tmp_path: Path) -> None:
    folder = save_family("qwen2", tmp_path / "source", torch.float32)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 10:42] = 0.0
            layer.self_attn.o_proj.weight[:, 32:] = 0.0  # the second of two groups, of two heads each
    model.save_pretrained(folder)
    dense = dense_of(folder)
    for importance in ("activation", "taylor", "fisher", "hessian"):
        made = pruned(WidthPrune(96, 1, importance), dense, tmp_path / importance)
        assert torch.allclose(logits_of(made), logits_of(dense), atol=1e-4)


def test_what_was_felt_of_a_batch_is_let_go_with_it() -> None:
    scores, module = torch.zeros(4), torch.nn.Linear(4, 2)
    handle = sensitivity._watch(module, torch.arange(4)[:, None], scores)
    gc.disable()
    try:
        inputs = torch.ones(3, 4, requires_grad=True) * 2
        kept = weakref.ref(inputs)
        module(inputs).sum().backward()
        del inputs
        assert kept() is None
    finally:
        gc.enable()
        handle.remove()
    assert torch.allclose(scores, 3 * (2 * module.weight.detach().sum(0)) ** 2)


@pytest.mark.parametrize("kv_heads", [0, 1])
def test_batches_that_do_not_wait_in_memory_are_followed_the_same(
    kv_heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = dense_of(save_family("llama", tmp_path / "source", torch.float32))
    pass_, made = WidthPrune(96, kv_heads), []
    for waiting in (1, 4):
        monkeypatch.setattr("passes.walk.edit.live_batches", lambda *of, waiting=waiting: waiting)
        (place := tmp_path / str(waiting)).mkdir()
        walk = EditingWalk(dense, pass_.rewrite(dense.ir), Narrowing(pass_, dense.ir.decoder), batch_tokens=48)
        made.append(walk.result("prune width", pass_.text(), context(place, IDS)))
    weights = [each.weights.read([tensor.name for tensor in each.ir.tensors()]) for each in made]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_compensated_blocks_are_nearer_to_the_source(tmp_path: Path) -> None:
    dense = dense_of(save_family("llama", tmp_path / "source", torch.float32))
    wanted = logits_of(dense)

    def error(pass_: WidthPrune, name: str) -> float:
        return float((logits_of(pruned(pass_, dense, tmp_path / name)) - wanted).square().mean())

    raw = error(WidthPrune(64, importance="activation", compensate=False), "raw")
    assert error(WidthPrune(64, importance="activation"), "compensated") < raw


def test_a_walk_that_was_cut_off_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    dense = dense_of(save_family("llama", tmp_path / "source", torch.float32, num_hidden_layers=4))
    pass_ = WidthPrune(96, 1)
    whole = pruned(pass_, dense, tmp_path / "whole")
    told: list[int] = []

    def cut(event: Progress) -> None:
        told.append(event.done)
        if event.done == 2:
            raise KeyboardInterrupt

    (tmp_path / "cut").mkdir()
    run = context(tmp_path / "cut", IDS)
    run.steps._progress = cut
    with pytest.raises(KeyboardInterrupt):
        pass_.dense(dense, run)
    again = pruned(pass_, dense, tmp_path / "cut")
    for path in sorted(whole.weights.folder.iterdir()):
        assert path.read_bytes() == (again.weights.folder / path.name).read_bytes(), path.name


def test_a_whole_chain_prunes_quantizes_and_is_what_was_predicted(tmp_path: Path) -> None:
    folder = save_family("gemma3_text", tmp_path / "source", torch.float32)
    ir = open_model(folder).ir
    passes = (WidthPrune(64, 1), Quantize("gptq", PackQuantized(4, 32)), KVCachePass("fp8", scales=True))
    job = Job(ir, folder, passes, tmp_path / "out", tmp_path / "work", TextSource("self", 8, 32))
    (text := tmp_path / "text.txt").write_text("Paris is the capital of France. " * 200)
    outcome = execute(replace(job, evaluation=TextSource(str(text), 4, 32)))
    assert outcome.measured is not None and outcome.tensor_bytes == outcome.target.tensor_bytes
    assert "prune width" in [step.name for step in outcome.steps]
    assert AutoModelForCausalLM.from_pretrained(job.out).config.intermediate_size == 64


def test_what_cannot_be_cut_is_refused_with_a_reason(tmp_path: Path) -> None:
    ir = open_model(save_family("llama", tmp_path / "source", torch.float32)).ir
    quantized = Quantize("gptq", PackQuantized(4, 32))

    def codes(*passes: Any) -> list[str]:
        return [reason.code for reason in illegal(ir, passes)]

    assert codes(quantized, WidthPrune(64)) == ["pass_order"]
    assert [reason.code for reason in WidthPrune(64).illegal(quantized.rewrite(ir))] == ["prune_needs_dense"]
    assert codes(WidthPrune(128)) == codes(WidthPrune(kv_heads=2)) == ["not_narrower"]
    assert codes(WidthPrune(64, importance="luck")) == ["unknown_importance"]
    assert codes(WidthPrune(80), Quantize("gptq", PackQuantized(4, 64)))  # a group of 64 does not divide 80 channels
    assert codes(WidthPrune(64), Quantize("gptq", PackQuantized(4, 64))) == []


@pytest.mark.parametrize(
    ("family", "pass_", "code"),
    [
        ("bloom", WidthPrune(64), "prune_width_layout"), ("olmo2", WidthPrune(kv_heads=1), "attention_not_in_groups"),
        ("gpt_oss", WidthPrune(kv_heads=1), "prune_width_layout"), ("mixtral", WidthPrune(64), "no_dense_mlp"),
        ("deepseek_v2", WidthPrune(kv_heads=1), "no_kv_groups"), ("falcon", WidthPrune(kv_heads=1), "attention_not_in_groups"),
    ],
)  # fmt: skip
def test_families_whose_config_or_attention_does_not_take_it(
    family: str, pass_: WidthPrune, code: str, tmp_path: Path
) -> None:
    changes = {"new_decoder_architecture": True, "num_kv_heads": 2} if family == "falcon" else {}
    ir = open_model(save_family(family, tmp_path, torch.float32, **changes)).ir
    assert [reason.code for reason in pass_.illegal(ir)] == [code]


def test_options_read_back_and_are_named_where_they_differ() -> None:
    for importance in IMPORTANCES:
        pass_ = WidthPrune(64, 1, importance, compensate=False)
        assert from_json(to_json([pass_])) == (pass_,)
    assert WidthPrune(64).text() == "prune_width{intermediate=64}"
    assert not WidthPrune(64, importance="random", compensate=False).needs_text and WidthPrune(64).needs_text


def test_strengths_are_multiples_that_groups_and_tiles_divide() -> None:
    """Of every model that is known: query heads stay whole groups, and no group size that its matrices take is lost by pruning.

    Groups of 128 are lost to the narrowest alone, whose widths go in steps of 64.
    """
    narrow, tried = 4096, 0
    for name in catalog.ids():
        ir = open_model(name).ir
        for pass_ in WidthPrune.degrees(ir):
            if pass_.illegal(ir):
                continue
            left, tried = pass_.rewrite(ir), tried + 1
            blocks = [block for block, _ in left.decoder.counts if isinstance(block.state, FullKV)]
            assert not any(block.heads % block.state.kv_heads for block in blocks if block.heads), (name, pass_)
            for size in (32, 64, 128):
                quantized = Quantize("gptq", PackQuantized(4, size))
                if not quantized.illegal(ir) and quantized.illegal(left):
                    assert size == 128 and pass_.intermediate < narrow, (name, pass_, size)
    assert tried > 1000
    assert [pass_.kv_heads for pass_ in WidthPrune.degrees(open_model("Llama-3-8B").ir) if pass_.kv_heads] == [6]


def test_units_hold_every_row_and_column_of_what_goes_together(llama_ir: Any) -> None:
    heads, channels = units_of(llama_ir.decoder.block(0), 64, 1)
    assert heads.columns.shape == (2, 32) and channels.columns.shape == (128, 1)
    assert heads.rows_of("self_attn.k_proj", torch.tensor([1])).tolist() == list(range(16, 32))
    assert set(channels.rows) == {"mlp.gate_proj", "mlp.up_proj"}


def test_the_loss_feels_a_unit_as_a_mask_over_it_says(tmp_path: Path) -> None:
    """The figure for a channel is Σ over tokens of what a mask's gradient would be there, squared."""
    folder = save_family("llama", tmp_path / "source", torch.float32)
    dense = dense_of(folder)
    blocks = unit_scores(WidthPrune(96, 1), dense, context(tmp_path, IDS))
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    layer, seen = model.model.layers[0], {}
    for name in ("mlp.down_proj", "self_attn.o_proj"):

        def masked(module: Any, args: Any, name: str = name) -> Any:
            seen[name] = torch.ones_like(args[0], requires_grad=True)  # a mask of its own at every token
            return (args[0] * seen[name],)

        layer.get_submodule(name).register_forward_pre_hook(masked)
    logits = model(IDS).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten(), reduction="sum").backward()
    channels = seen["mlp.down_proj"].grad.square().sum((0, 1))
    groups = seen["self_attn.o_proj"].grad.unflatten(-1, (2, -1)).sum(-1).square().sum((0, 1))
    found = {name: torch.tensor(scores) for name, scores in blocks[0]["fisher"].items()}
    assert torch.allclose(found["mlp.down_proj"], channels, rtol=1e-3)
    assert torch.allclose(found["self_attn.o_proj"], groups, rtol=1e-3)

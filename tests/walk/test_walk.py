"""The streaming walk does what a whole model in memory with hooks does, block after block, and writes what it computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM

from passes import chain
from passes.algorithms.gptq import gptq
from passes.algorithms.method import GPTQ_DEFAULT, Gptq, RoundToNearest
from passes.blocks.decoded_weights import DecodedCheckpoint
from passes.blocks.decoder import Decoder
from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import Checkpoint, write_shard
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.ir.model import ModelIR
from passes.kv_cache import KVCachePass
from passes.measure.evaluate import Measured, evaluate
from passes.quantize.quantize import Quantize
from passes.steps.step import Report
from passes.walk.walk import Method, Walk
from tests.walk.conftest import context

CPU, FP32 = torch.device("cpu"), torch.float32
METHOD = Gptq(GPTQ_DEFAULT)
FORMAT = PackQuantized(4, 32)
CHAIN = (Quantize("gptq", FORMAT), KVCachePass("fp8", True))


def walk(
    llama: Path,
    ir: ModelIR,
    tokens: torch.Tensor,
    folder: Path,
    method: Method = METHOD,
    devices: tuple[torch.device, ...] = (CPU,),
    report: Report | None = None,
    batches_in_memory: int | None = None,
) -> Walk:
    run, dense = context(folder, tokens, devices, report), DenseModel(ir, Checkpoint(llama))
    return Walk(dense, chain.rewrite(ir, CHAIN), method, run, 128, batches_in_memory)


def decoded(llama: Path, ir: ModelIR, folder: Path) -> DecodedCheckpoint:
    outer = [t.name for linear in ir.outer for t in linear.tensors()] + [t.name for t in ir.outer_tensors]
    write_shard(folder / "shards" / "model-00000.safetensors", Checkpoint(llama).read(outer))
    return DecodedCheckpoint(Checkpoint(folder / "shards"), chain.rewrite(ir, CHAIN), FP32)


def reference(llama: Path, tokens: torch.Tensor) -> LlamaForCausalLM:
    """GPTQ the plain way: the whole model, one whole forward and one hook for every matrix."""
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=FP32).eval()
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        groups = (
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        )
        for group in groups:
            seen: list[torch.Tensor] = []
            handle = group[0].register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0].reshape(-1, args[0].shape[-1]))
            )
            with torch.no_grad():
                for batch in tokens.split(4):
                    model(batch)
            handle.remove()
            inputs = torch.cat(seen)
            for linear in group:
                quantized, _ = gptq(
                    linear.weight.data, inputs.T @ inputs, FORMAT.grid, torch.bfloat16, GPTQ_DEFAULT, "reference"
                )
                codes = quantized.codes.float().reshape(*quantized.scale.shape, -1)
                linear.weight.data = (codes * quantized.scale[..., None]).reshape(linear.weight.shape)
    return model


def test_the_walk_equals_a_whole_model_with_hooks(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    walk(llama, llama_ir, tokens, tmp_path).run()
    weights, plain = decoded(llama, llama_ir, tmp_path), reference(llama, tokens)
    for name, parameter in plain.named_parameters():
        if "_proj" in name:
            ours = weights.read([name])[name]
            agreeing = float(((ours - parameter).abs() < 1e-5).float().mean())
            assert agreeing > 0.99, (name, agreeing)


def test_hidden_states_go_on_from_the_decoded_weights(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    carried: list[list[torch.Tensor]] = []

    def keep(done: int, total: int, detail: str = "") -> None:
        latest = sorted((tmp_path / "hidden").iterdir())[-1]
        carried.append([load_file(path)["hidden"] for path in sorted(latest.iterdir())])

    walk(llama, llama_ir, tokens, tmp_path, report=keep).run()
    weights = decoded(llama, llama_ir, tmp_path)
    dense = DenseModel(llama_ir, weights)
    decoder = Decoder(dense, FP32, CPU)
    hidden = list(decoder.embed(tokens.split(4)))
    for index in range(len(decoder)):
        with decoder.block(index, dense.block(index)) as layer:
            hidden = [decoder.run(layer, index, each) for each in hidden]
        for ours, theirs in zip(hidden, carried[index], strict=True):
            assert torch.equal(ours, theirs)


def test_kv_scales_are_the_largest_cached_magnitude_over_448(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    walk(llama, llama_ir, tokens, tmp_path, RoundToNearest()).run()
    weights = decoded(llama, llama_ir, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=FP32).eval()
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict({name: weights.read([name])[name] for name in names}, strict=False)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens, past_key_values=cache, use_cache=True)
    stored = Checkpoint(tmp_path / "shards")
    for index, layer in enumerate(cache.layers):
        prefix = f"model.layers.{index}.self_attn."
        scales = stored.read([prefix + "k_scale", prefix + "v_scale"])
        torch.testing.assert_close(scales[prefix + "k_scale"], layer.keys.abs().amax().reshape(1) / 448)
        torch.testing.assert_close(scales[prefix + "v_scale"], layer.values.abs().amax().reshape(1) / 448)


def test_every_stored_tensor_is_the_described_one(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    walk(llama, llama_ir, tokens, tmp_path, RoundToNearest()).run()
    decoded(llama, llama_ir, tmp_path)
    assert set(Checkpoint(tmp_path / "shards").describe()) == set(chain.rewrite(llama_ir, CHAIN).tensors())


@pytest.mark.parametrize("batch_tokens", [32, 10_000])
def test_batch_size_changes_nothing_but_rounding(
    batch_tokens: int, llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    walk(llama, llama_ir, tokens, one).run()
    replace(walk(llama, llama_ir, tokens, two), batch_tokens=batch_tokens).run()
    name = "model.layers.0.mlp.down_proj.weight"
    a, b = (decoded(llama, llama_ir, folder).read([name])[name] for folder in (one, two))
    assert float(((a - b).abs() < 1e-5).float().mean()) > 0.99


@pytest.mark.parametrize("method", [METHOD, RoundToNearest()])
def test_several_devices_share_the_batches_of_a_block(
    method: Method,
    llama: Path,
    llama_ir: ModelIR,
    tokens: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three copies of the block on one processor: what three cards would run, and a run cut off in the middle."""
    ran: list[tuple[int, int]] = []
    run = Decoder.run
    monkeypatch.setattr(
        Decoder,
        "run",
        lambda self, layer, index, *rest: (ran.append((id(self), index)), run(self, layer, index, *rest))[1],
    )
    one, three = tmp_path / "one", tmp_path / "three"
    walk(llama, llama_ir, tokens, one, method).run()
    ran.clear()

    def stop(done: int, total: int, detail: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk(llama, llama_ir, tokens, three, method, (CPU,) * 3, report=stop).run()
    shared = Counter(ran)
    batches = -(-tokens.numel() // 128)
    assert sorted(shared.values()) == sorted(len(range(card, batches, 3)) for card in range(3))
    walk(llama, llama_ir, tokens, three, method, (CPU,) * 3).run()
    for name, weight in (
        decoded(llama, llama_ir, one).read([f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]).items()
    ):
        agreeing = float(((decoded(llama, llama_ir, three).read([name])[name] - weight).abs() < 1e-5).float().mean())
        assert agreeing > 0.99, (name, agreeing)
    scales = [Checkpoint(folder / "shards").read(["model.layers.1.self_attn.k_scale"]) for folder in (one, three)]
    torch.testing.assert_close(*scales)


def test_kl_and_perplexity_equal_those_of_whole_models(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    walk(llama, llama_ir, tokens, tmp_path, RoundToNearest()).run()
    weights = decoded(llama, llama_ir, tmp_path)
    source, result = DenseModel(llama_ir, Checkpoint(llama)), DenseModel(llama_ir, weights)
    measured = evaluate(source, result, context(tmp_path / "eval", tokens), batch_tokens=64)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=FP32).eval()
    with torch.no_grad():
        source = model(tokens).logits.log_softmax(-1)[:, :-1]
        model.load_state_dict({name: weights.read([name])[name] for name, _ in model.named_parameters()}, strict=False)
        result = model(tokens).logits.log_softmax(-1)[:, :-1]
    kl = (source.exp() * (source - result)).sum(-1).mean()
    likelihood = result.gather(-1, tokens[:, 1:, None]).mean()
    assert measured.kl == pytest.approx(float(kl), rel=1e-3)
    assert measured.perplexity == pytest.approx(float((-likelihood).exp()), rel=1e-3)
    assert measured.tokens == tokens.shape[0] * (tokens.shape[1] - 1)


def test_a_model_has_no_distance_from_itself(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = DenseModel(llama_ir, Checkpoint(llama))
    measured = evaluate(model, model, context(tmp_path, tokens))
    assert measured.kl == pytest.approx(0, abs=1e-6)
    assert measured.log_ppl_increase == 0


def test_a_source_that_only_guesses_is_told_from_one_that_predicts() -> None:
    def measured(source_perplexity: float) -> Measured:
        return Measured(0.1, 0.01, 10.0, source_perplexity, 0.1, 0.01, 100, 8)

    assert not measured(83.5).source_guesses(49152)  # Gemma 3 270M without its first token
    assert measured(48_900.0).source_guesses(49152) and measured(1e9).source_guesses(49152)
    assert measured(float("nan")).source_guesses(49152)


def test_few_texts_give_a_wide_interval() -> None:
    def measured(sequences: int) -> Measured:
        return Measured(0.1, 0.01, 10.0, 9.0, 0.1, 0.01, 100, sequences)

    assert measured(2).half_width(0.01) == pytest.approx(0.0631, abs=1e-4)
    assert measured(16).half_width(0.01) == pytest.approx(0.01753, abs=1e-4)
    assert measured(1).half_width(0.01) == float("inf")

"""Every pass on models of every kind: the factored sums are those of the expanded list, nothing else changes, JSON reads back."""

import math

import pytest

from passes.algorithms.knapsack import Unit, allocate
from passes.chain import from_json, to_json
from passes.distill.distill import Distill
from passes.errors import InputError
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.dense import Dense
from passes.ir.model import Role
from passes.ir.resident import resident_model
from passes.ir.sources import open_model
from passes.prune.depth import DepthPrune
from passes.prune.experts import ExpertPrune
from passes.prune.sparse import Sparsify
from passes.prune.width import WidthPrune
from passes.quantize.exl2 import QuantizeExl2, budget_bytes, lowest_bpw, resolved_bytes, slot_bytes
from passes.quantize.format_names import examples, pass_named
from passes.quantize.quantize import Quantize

MODELS = ["Llama-3-8B", "Qwen2.5-7B-Instruct", "Phi-4", "Qwen3-30B-A3B", "gemma-2-9b-it", "Mixtral-8x7B-Instruct-v0.1"]
PASSES = [
    *(p for p in map(pass_named, examples()) if p is not None), DepthPrune(2), WidthPrune(intermediate=1024), WidthPrune(kv_heads=2),
    ExpertPrune(6), Sparsify(), Sparsify(pattern="2:4"), Distill(), QuantizeExl2(3.0, 8),
]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def ir(request):
    return open_model(request.param).ir


def refused(ir, one):
    """The reason why a model takes no pass of `PASSES`: pruning needs experts, or an MLP, which not all models have."""
    if isinstance(one, WidthPrune) and one.intermediate and ir.name.startswith(("mistralai/Mixtral", "Qwen/Qwen3-30B")):
        return "no_dense_mlp"
    if not isinstance(one, ExpertPrune) or ir.name.startswith("mistralai/Mixtral"):
        return None
    return "experts_kept" if ir.name == "Qwen/Qwen3-30B-A3B" else "no_experts"  # six is fewer than a token asks for


@pytest.mark.parametrize("one", PASSES, ids=lambda p: p.text())
def test_sums_are_those_of_the_expanded_list(ir, one):
    if refusal := refused(ir, one):
        assert [reason.code for reason in one.illegal(ir)] == [refusal]
        return
    assert not one.illegal(ir)
    out = one.rewrite(ir)
    expanded = list(out.tensors())
    assert out.tensor_bytes == sum(tensor.bytes for tensor in expanded)
    assert len({tensor.name for tensor in expanded}) == len(expanded), "no name twice"
    assert from_json(to_json([one])) == (one,)
    if one.load_time:
        assert expanded == list(ir.tensors())
        assert resident_model(out).tensor_bytes < ir.tensor_bytes


def test_what_recipes_keep_dense_stays(ir):
    out = pass_named("w4a16-g32").rewrite(ir)
    kept = {Role.EMBEDDING, Role.HEAD, Role.ROUTER}
    dense = [
        lin
        for lin in (*out.outer, *(lin for block in out.decoder.classes for lin in block.linears))
        if lin.role in kept
    ]
    assert dense and all(isinstance(lin.storage, Dense) for lin in dense)
    experts = [lin for block in out.decoder.classes for lin in block.linears if lin.copies > 1]
    assert all(not isinstance(lin.storage, Dense) for lin in experts), "no expert is skipped"


def _allocated(ir, bpw):
    """Options by the allocator, each slot's loss falling fourfold a bit."""
    units = []
    for layer in range(len(ir.decoder.layers)):
        for kind, sizes in zip(("attention", "mlp"), slot_bytes(ir.decoder.block(layer)), strict=True):
            losses = tuple(math.exp(-1.39 * 8 * size / max(sizes) + 0.01 * layer) for size in sizes)
            units.append(Unit(f"{layer}.{kind}", sizes, losses))
    found = allocate(units, budget_bytes(ir, bpw))
    assert found.gap == 0
    return tuple(zip(found.choice[::2], found.choice[1::2], strict=True))


@pytest.mark.parametrize("bpw", [2.5, 4.65, 6.0])
def test_exl2_is_never_above_what_was_asked(ir, bpw):
    bounded = QuantizeExl2(bpw)
    assert bounded.illegal(ir) == ()
    resolved = QuantizeExl2(bpw, choices=_allocated(ir, bpw))
    assert resolved.resolved and resolved.illegal(ir) == ()
    out, bound = resolved.rewrite(ir), bounded.rewrite(ir)
    assert out.tensor_bytes == sum(tensor.bytes for tensor in out.tensors()) <= bound.tensor_bytes
    exl2 = sum(
        count * sum(lin.bytes for lin in block.linears if lin.quantizable) for block, count in out.decoder.counts
    )
    assert 0.97 * budget_bytes(ir, bpw) < exl2 == resolved_bytes(ir, resolved.choices) <= budget_bytes(ir, bpw)
    assert from_json(to_json([resolved])) == (resolved,)


def test_exl2_says_the_lowest_width(ir):
    (reason,) = QuantizeExl2(2.0).illegal(ir)
    assert reason.code == "exl2_bpw_too_low"
    assert QuantizeExl2(float(reason.remedy.split()[-1])).illegal(ir) == ()
    assert 2.1 < lowest_bpw(ir) < 2.4


def test_exl2_stores_a_tied_head_of_its_own():
    ir = open_model("gemma-2-9b-it").ir
    names = {tensor.name for tensor in QuantizeExl2(4.0).rewrite(ir).tensors()}
    assert {"model.embed_tokens.weight", "lm_head.q_weight"} <= names


def test_exl2_splits_fused_matrices():
    names = {
        tensor.name for tensor in QuantizeExl2(4.0, choices=((6, 7),) * 40).rewrite(open_model("Phi-4").ir).tensors()
    }
    stem = "model.layers.0."
    assert {stem + "self_attn.k_proj.q_weight", stem + "mlp.gate_proj.q_weight"} <= names
    assert not any("qkv_proj" in name or "gate_up_proj" in name for name in names)


def test_formats_may_differ_from_matrix_to_matrix():
    ir = open_model("Llama-3-8B").ir
    eight = PackQuantized(8, 128)
    down = ("model.layers.0.mlp.down_proj", eight)
    mixed = Quantize("gptq", PackQuantized(4, 128), (down, ("model.layers.1.mlp.down_proj", Dense())))
    assert mixed.illegal(ir) == () and from_json(to_json([mixed])) == (mixed,)
    found = {t.name: t for t in mixed.rewrite(ir).tensors()}
    assert found["model.layers.0.mlp.down_proj.weight_packed"].shape == (4096, 14336 // 4)
    assert found["model.layers.1.mlp.down_proj.weight"].dtype == "BF16"
    assert found["model.layers.2.mlp.down_proj.weight_packed"].shape == (4096, 14336 // 8)


@pytest.mark.parametrize(
    ("assigned", "code"),
    [("model.layers.0.self_attn.v_proj", "formats_must_agree"), ("model.layers.99.mlp.down_proj", "no_such_matrix")],
)
def test_assignments_that_no_engine_holds(assigned, code):
    ir = open_model("Llama-3-8B").ir
    (reason,) = Quantize("gptq", PackQuantized(4, 128), ((assigned, PackQuantized(8, 128)),)).illegal(ir)
    assert reason.code == code


def test_pruned_sizes_are_those_of_the_pruned_config():
    ir = open_model("Llama-3-8B").ir
    out = WidthPrune(intermediate=7168, kv_heads=4).rewrite(ir)
    assert out.config["intermediate_size"] == 7168 and out.config["num_attention_heads"] == 16
    block = out.decoder.classes[0]
    shapes = {lin.name: (lin.out_features, lin.in_features) for lin in block.linears}
    assert shapes["self_attn.q_proj"] == (2048, 4096) and shapes["self_attn.o_proj"] == (4096, 2048)
    assert shapes["mlp.gate_proj"] == (7168, 4096) and block.state.kv_heads == 4 and block.heads == 16


def test_pruned_experts_take_their_router_rows_along():
    ir = open_model("Qwen3-30B-A3B").ir
    out = ExpertPrune(64).rewrite(ir)
    found = {t.name: t.shape for t in out.tensors()}
    assert found["model.layers.0.mlp.gate.weight"] == (64, 2048) and out.config["num_experts"] == 64
    assert not any(".experts.64." in name for name in found)


@pytest.mark.parametrize(
    ("one", "code"),
    [
        (ExpertPrune(4), "no_experts"), (WidthPrune(), "width_prune_nothing"), (WidthPrune(99999), "not_narrower"),
        (WidthPrune(kv_heads=8), "not_narrower"), (Sparsify("magic"), "unknown_sparsity_method"),
        (Sparsify(sparsity=1.0), "sparsity_share"),
        (Sparsify(pattern="4:2"), "sparsity_pattern"), (Sparsify(sparsity=0.3, pattern="2:4"), "sparsity_pattern"),
        (Distill("magic"), "unknown_distillation"), (Distill(tokens=0), "distill_tokens"),
    ],
)  # fmt: skip
def test_impossible_passes_say_why(one, code):
    assert one.illegal(open_model("Llama-3-8B").ir)[0].code == code


@pytest.mark.parametrize("name", ["w4a16", "gptq-5-g128", "exl2", "fp7", "nf5", ""])
def test_names_that_mean_nothing_are_refused(name):
    with pytest.raises(InputError) as caught:
        pass_named(name)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["w4a16-g0", "gptq-4-g0", "rtn-4-g0", "awq-4-g0", "autoround-4-g00", "mixed-5.0-g0"])
def test_a_group_of_nothing_is_an_unknown_format_with_the_nearest_names(name):
    with pytest.raises(InputError, match=r"unknown weight format .* Did you mean") as caught:
        pass_named(name)
    assert caught.value.exit_code == 2


def test_marks_of_gptq_stand_in_any_order_and_bits_are_named() -> None:
    assert pass_named("gptq-4-g64-act-asym-v2") == pass_named("gptq-4-g64-asym-act-v2")
    with pytest.raises(InputError, match="2, 3, 4 or 8 bits") as caught:
        pass_named("gptq-5-g64")
    assert caught.value.remedy == "for example gptq-4-g64"
    with pytest.raises(InputError, match="takes the bits a weight"):
        pass_named("exl2")
    with pytest.raises(InputError, match="2, 3, 4 or 8 bits"):
        pass_named("rtn-9")
    with pytest.raises(InputError, match="lacks its group size"):
        pass_named("autoround-4")

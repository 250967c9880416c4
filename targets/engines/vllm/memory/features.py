"""What a server's features take of a rank: adapters, what drafts, offloaded weights, encoders left out or held whole.

Sources: vLLM 0.33's `lora/layers/` (what each holds for `max_loras` adapters), `v1/spec_decode/` (a draft's layers keep caches beside the
model's, on the last stage), `model_executor/offloader/uva.py` (whole parameters, until so many bytes are reached),
`model_executor/models/interfaces.py:_mark_tower_model` (encoders without items are not loaded).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from passes.ir.architectures.config import Config
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.state import FullKV, LatentKV, LayerState, Recurrent, StatePart
from targets.engines.engine import Parallel
from targets.engines.features import Adapters, Drafting, Features
from targets.engines.resident_weights import Ranks, block_bytes, local_shape, ranks_of, stage_blocks, weights_per_stage
from targets.engines.vllm.memory.encoder import sees_videos
from targets.engines.vllm.rules.versions import Rules
from targets.quantity import Basis, Quantity

#: Stacks that encode pictures and sound, and where their outer matrices are named.
_ENCODERS = ("vision", "audio")
_TOWERS = (
    "visual",
    "vision",
    "audio",
    "multi_modal",
    "mm_",
    "image",
    "vit",
    "speech",
    "sound",
    "patch",
    "resampler",
    "aligner",
)
#: Slices that one stored matrix is of, each with an adapter of its own.
_SLICES = {Role.QKV: 3, Role.GATE_UP: 2}
_ROW_PARALLEL = {Role.O, Role.DOWN, Role.MIXER_OUT}
_COLUMN_PARALLEL = {
    Role.Q,
    Role.K,
    Role.V,
    Role.QKV,
    Role.Q_UP,
    Role.KV_UP,
    Role.GATE,
    Role.UP,
    Role.GATE_UP,
    Role.MIXER_IN,
    Role.MIXER_GATE,
}
#: The first version with adapters on experts (`lora/layers/fused_moe.py`).
_EXPERT_ADAPTERS = (0, 11, 1)
#: Classes whose embedding and head take adapters too (`embedding_modules` of the files in `model_executor/models/`).
_EMBEDDING_ADAPTERS = frozenset({
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "GraniteForCausalLM",
    "GraniteMoeForCausalLM", "NemotronForCausalLM", "NemotronHForCausalLM", "SolarForCausalLM", "ExaoneForCausalLM", "Exaone4ForCausalLM",
    "CohereForCausalLM", "Cohere2ForCausalLM", "JambaForCausalLM", "PhimoeForCausalLM", "ApertusForCausalLM", "Lfm2ForCausalLM",
})  # fmt: skip
#: Of a draft that nobody here knows: how far its bytes may be off, the vocabulary of EAGLE-3's own head.
_ASSUMED_ERROR, _DRAFT_VOCABULARY = 0.4, 32_000
_DTYPES = {2: "BF16", 4: "F32"}


def served(ir: ModelIR, features: Features) -> ModelIR:
    """Return the model as it is loaded: without its encoders, where none is asked for."""
    return without_encoders(ir) if features.text_only or _lets_in_none(ir, features) else ir


def _lets_in_none(ir: ModelIR, features: Features) -> bool:
    """Whether no item of any kind is let in; a kind that no limit names is (`config/multimodal.py:get_limit_per_prompt`)."""
    media = dict(features.media)
    return bool(media) and not any(media.values()) and ("video" in media or not sees_videos(ir))


def without_encoders(ir: ModelIR) -> ModelIR:
    """Return the model without what encodes pictures and sound."""
    stacks = tuple(stack for stack in ir.stacks if stack.name not in _ENCODERS)
    if len(stacks) == len(ir.stacks):
        return ir
    return replace(
        ir,
        stacks=stacks,
        outer=tuple(linear for linear in ir.outer if not _of_tower(linear)),
        outer_tensors=tuple(tensor for tensor in ir.outer_tensors if not _named_tower(tensor.name)),
    )


def _of_tower(linear: Linear) -> bool:
    return linear.role is Role.PROJECTOR or _named_tower(linear.name)


def _named_tower(name: str) -> bool:
    return any(part.startswith(_TOWERS) for part in name.split("."))


def weights_of_stages(
    ir: ModelIR, parallel: Parallel, rules: Rules, features: Features
) -> tuple[tuple[int, Quantity], ...]:
    """Return the bytes of weights of one rank of each pipeline stage with its features, and those that are assumed, first stage first."""
    sizes = list(weights_per_stage(ir, parallel, rules))
    ranks = ranks_of(ir, parallel, rules)
    if features.whole_encoders and parallel.tp > 1:
        sizes[0] += _encoders(ir, replace(ranks, tp=1)) - _encoders(ir, ranks)
    if features.offload_bytes:
        sizes = [size - _offloaded(ir, parallel, stage, ranks, features) for stage, size in enumerate(sizes)]
    if features.adapters is not None:
        for stage in range(parallel.pp):
            sizes[stage] += _adapters(ir, parallel, stage, ranks, rules, features.adapters)
    draft = Quantity.exact(0)
    if features.drafting is not None:
        draft = _draft(ir, features.drafting, ranks)
    return tuple((size, draft if stage == parallel.pp - 1 else Quantity.exact(0)) for stage, size in enumerate(sizes))


def _encoders(ir: ModelIR, ranks: Ranks) -> int:
    return sum(count * block_bytes(block, ranks) for s in ir.stacks if s.name in _ENCODERS for block, count in s.counts)


def _offloaded(ir: ModelIR, parallel: Parallel, stage: int, ranks: Ranks, features: Features) -> int:
    """Bytes of the stage's layers that stay in the machine's memory: no more than the layers have."""
    layers = sum(count * block_bytes(block, ranks) for block, count in stage_blocks(ir, parallel.pp, stage))
    return min(features.offload_bytes, layers)


def _adapters(ir: ModelIR, parallel: Parallel, stage: int, ranks: Ranks, rules: Rules, adapters: Adapters) -> int:
    """Bytes of both halves of every adapter, for each matrix of the stage's layers."""
    with_experts = rules.version >= _EXPERT_ADAPTERS
    elements = sum(
        count * _adapter_elements(linear, block.state, ranks, adapters)
        for block, count in stage_blocks(ir, parallel.pp, stage)
        for linear in block.linears
        if linear.copies == 1 or with_experts
    )
    if not _EMBEDDING_ADAPTERS.isdisjoint(Config(ir.config, ir.name).names("architectures", default=())):
        ends = {Role.EMBEDDING: stage == 0, Role.HEAD: stage == parallel.pp - 1}
        elements += sum(
            adapters.rank * (linear.out_features + linear.in_features) for linear in ir.outer if ends.get(linear.role)
        )
    return elements * adapters.slots * adapters.element_bytes


def _adapter_elements(linear: Linear, state: LayerState, ranks: Ranks, adapters: Adapters) -> int:
    """Elements of one adapter of a matrix on a rank: A reads the inputs, B writes the outputs; one of them is cut as the matrix is."""
    rows, inputs, copies = local_shape(linear, ranks, state)
    narrow = adapters.rank // ranks.tp if adapters.sharded and ranks.tp > 1 else adapters.rank
    first = (narrow if linear.role in _COLUMN_PARALLEL else adapters.rank) * inputs * _SLICES.get(linear.role, 1)
    out = rows // ranks.tp if adapters.sharded and linear.role in _ROW_PARALLEL else rows
    return copies * (first + out * adapters.rank)


def _draft(ir: ModelIR, drafting: Drafting, ranks: Ranks) -> Quantity:
    """Bytes of what drafts on a rank: its layers; embedding and head are the model's, unless it is a model of its own."""
    cut = replace(ranks, tp=1) if drafting.whole else ranks
    if drafting.own:
        return Quantity.exact(sum(count * block_bytes(block, cut) for block, count in _own_layers(ir)))
    if drafting.draft is not None:
        whole = Parallel(tp=cut.tp)
        return Quantity.exact(sum(weights_per_stage(drafting.draft, whole, None)))
    if drafting.assumed:
        return Quantity.relative(_assumed_head(ir, drafting) / cut.tp, _ASSUMED_ERROR, Basis.ASSUMED)
    return Quantity.exact(0)


def _own_layers(ir: ModelIR) -> tuple[tuple[Block, int], ...]:
    return next((stack.counts for stack in ir.stacks if stack.name == "mtp"), ())


def _assumed_head(ir: ModelIR, drafting: Drafting) -> float:
    """Bytes in 16 bits of an EAGLE head for this model: a matrix over its inputs, one dense layer, EAGLE-3's own smaller vocabulary."""
    config = Config(ir.config, ir.name)
    text = config.part("text_config") if config.has("text_config") else config
    inner = text.integer("intermediate_size", default=4 * ir.hidden_size)
    state = _attention(ir)
    keys = state.kv_heads * state.head_dim if state is not None else ir.hidden_size
    third = drafting.method == "eagle3"
    inputs = ir.hidden_size * (2 if third else 1)
    layer = 2 * inputs * keys + (inputs + ir.hidden_size) * ir.hidden_size + 3 * ir.hidden_size * inner
    head = _DRAFT_VOCABULARY * ir.hidden_size if third else 0
    return 2.0 * (layer + (3 if third else 2) * ir.hidden_size**2 + head)


def _attention(ir: ModelIR) -> FullKV | None:
    return next((block.state for block, _ in ir.decoder.counts if isinstance(block.state, FullKV)), None)


def draft_states(ir: ModelIR, features: Features) -> Iterator[tuple[LayerState, int]]:
    """Give the caches of what drafts, on the last stage."""
    drafting = features.drafting
    if drafting is None:
        return
    if drafting.own:
        yield from ((block.state, count) for block, count in _own_layers(ir))
    elif drafting.draft is not None:
        yield from ((block.state, count) for block, count in drafting.draft.decoder.counts)
    elif drafting.assumed:
        state = _attention(ir)
        latent = next((block.state for block, _ in ir.decoder.counts if isinstance(block.state, LatentKV)), None)
        if (kept := state or latent) is not None:
            yield kept, 1


def with_state_types(state: LayerState, features: Features) -> LayerState:
    """Return a recurrent state in the types that are asked for it."""
    if not isinstance(state, Recurrent) or not (features.state_bytes or features.convolution_bytes):
        return state

    def typed(part: StatePart) -> StatePart:
        asked = features.convolution_bytes if part.name.startswith("conv") else features.state_bytes
        return replace(part, dtype=_DTYPES[asked]) if asked else part

    return replace(state, parts=tuple(map(typed, state.parts)))

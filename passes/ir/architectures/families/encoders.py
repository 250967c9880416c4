"""Encoders that read a text whole and keep no cache: BERT, RoBERTa, XLM-RoBERTa, ModernBERT; as embedding models, rerankers, classifiers.

Names as transformers has them (`modeling_bert.py`, `modeling_xlm_roberta.py`, `modeling_modernbert.py`).
"""

from __future__ import annotations

from passes.ir.architectures.config import Config
from passes.ir.architectures.draft import Description, Names, make_stack
from passes.ir.architectures.parts import Heads, Maker, Part, total
from passes.ir.model import Role

_MODERN = "ModernBert"
_CLASSIFIER = "ForSequenceClassification"


def describe(config: Config, architecture: str, m: Maker, names: Names) -> Description:
    """Describe an encoder by its class."""
    if architecture.startswith(_MODERN):
        return _modern(config, architecture, m)
    roberta = "Roberta" in architecture
    classifies = architecture.endswith(_CLASSIFIER)
    base = ("roberta." if roberta else "bert.") if classifies else ""
    hidden = config.integer("hidden_size")
    heads, inner = config.integer("num_attention_heads"), config.integer("intermediate_size")
    own = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    layer = total(
        m.attention(hidden, Heads(heads, heads, hidden // heads), qkv_bias=True, o_bias=True, names=own),
        m.plain_mlp(hidden, inner, names=("intermediate.dense", "output.dense"), bias=True),
        m.norms(hidden, "attention.output.LayerNorm", "output.LayerNorm", bias=True),
    )
    outer = total(
        m.embedding(base + "embeddings.word_embeddings", config.integer("vocab_size"), hidden),
        _table(m, base + "embeddings.position_embeddings", config.integer("max_position_embeddings"), hidden),
        _table(m, base + "embeddings.token_type_embeddings", config.integer("type_vocab_size", default=2), hidden),
        m.norms(hidden, base + "embeddings.LayerNorm", bias=True),
    )
    if m.has("pooler.dense.weight", default=not (roberta and classifies)):
        outer += m.linear(base + "pooler.dense", Role.OTHER, hidden, hidden, bias=True, quantizable=False)
    if classifies:
        outer += _classifier(m, config, ("classifier.dense", "classifier.out_proj") if roberta else ("classifier",))
    stack = make_stack("decoder", base + "encoder.layer.{i}.", [layer.block()] * config.integer("num_hidden_layers"))
    return Description((stack,), outer)


def _modern(config: Config, architecture: str, m: Maker) -> Description:
    """ModernBERT (arXiv 2412.13663): fused q, k, v and a gated feed-forward, no biases, rotary positions."""
    classifies = architecture.endswith(_CLASSIFIER)
    base = "model." if classifies or m.has("model.final_norm.weight", default=False) else ""
    hidden = config.integer("hidden_size")
    heads, inner = config.integer("num_attention_heads"), config.integer("intermediate_size")
    inside = total(
        m.fused_attention(hidden, Heads(heads, heads, hidden // heads), names=("attn.Wqkv", "attn.Wo")),
        m.fused_mlp(hidden, inner, names=("mlp.Wi", "mlp.Wo")),
        m.norms(hidden, "mlp_norm"),
    )
    first, rest = inside.block(), (inside + m.norms(hidden, "attn_norm")).block()
    outer = m.embedding(base + "embeddings.tok_embeddings", config.integer("vocab_size"), hidden)
    outer += m.norms(hidden, base + "embeddings.norm", base + "final_norm")
    if classifies:
        outer += m.linear("head.dense", Role.OTHER, hidden, hidden, quantizable=False) + m.norms(hidden, "head.norm")
        outer += _classifier(m, config, ("classifier",))
    blocks = [first, *[rest] * (config.integer("num_hidden_layers") - 1)]
    return Description((make_stack("decoder", base + "layers.{i}.", blocks),), outer)


def _table(m: Maker, name: str, rows: int, hidden: int) -> Part:
    return m.linear(name, Role.POSITION, rows, hidden, quantizable=False)


def _classifier(m: Maker, config: Config, names: tuple[str, ...]) -> Part:
    """The matrices that make labels: all but the last keep the width."""
    hidden = config.integer("hidden_size")
    labels = config.integer("num_labels", default=max(1, len(config.mapping("id2label", {}) or (0, 1))))
    *before, last = names
    return total(
        *(m.linear(name, Role.OTHER, hidden, hidden, bias=True, quantizable=False) for name in before),
        m.linear(last, Role.OTHER, labels, hidden, bias=True, quantizable=False),
    )

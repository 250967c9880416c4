"""A chain of passes: legal orders, text, JSON."""

from __future__ import annotations

import pytest

from passes.chain import draw, from_json, illegal, to_json
from passes.errors import InputError
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.gptq import Gptq
from passes.ir.model import ModelIR
from passes.kv_cache import KVCachePass
from passes.quantize.quantize import Quantize

CHAIN = (Quantize("gptq", PackQuantized(4, 32)), KVCachePass("fp8", True))


def test_a_chain_reads_from_source_to_checkpoint() -> None:
    assert draw(CHAIN) == "source ─► quantize{gptq, w4a16-g32} ─► kv_cache{dtype=fp8, scales=True} ─► checkpoint"


@pytest.mark.parametrize(
    "chain",
    [(), CHAIN, (Quantize("rtn", Gptq(8, -1)),), (Quantize("rtn", FloatQuantized(-1, (128, 128))), KVCachePass("fp8"))],
)
def test_json_reads_back_equal(chain: tuple[Quantize | KVCachePass, ...]) -> None:
    import json

    assert from_json(json.loads(json.dumps(to_json(chain)))) == chain


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="quantize"):
        from_json([{"pass": "quantise"}])
    with pytest.raises(InputError, match="make the plan again"):
        from_json([{"pass": "kv_cache", "bits": 3}])


def test_order_and_repetition_are_checked(llama_ir: ModelIR) -> None:
    assert [reason.code for reason in illegal(llama_ir, CHAIN[::-1])] == ["pass_order"]
    assert [reason.code for reason in illegal(llama_ir, CHAIN[:1] * 2)] == ["pass_twice"]
    assert illegal(llama_ir, CHAIN) == ()


def test_scales_cannot_stand_in_a_gptq_checkpoint(llama_ir: ModelIR) -> None:
    reasons = illegal(llama_ir, (Quantize("gptq", Gptq(4, 32)), KVCachePass("fp8", True)))
    assert [reason.code for reason in reasons] == ["kv_scales_need_compressed_tensors"]
    assert illegal(llama_ir, (Quantize("gptq", Gptq(4, 32)), KVCachePass("fp8"))) == ()

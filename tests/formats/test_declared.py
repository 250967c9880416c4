"""What formats declare of themselves: their names, what others ask of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from passes.formats.at_load import Resident
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.exllama.exl2_bounded import Exl2Bounded
from passes.formats.exllama.exl3 import Exl3
from passes.formats.format import FORMATS, Format, KernelFamily, Rounding, format_named, formats
from passes.formats.gptq import Gptq
from passes.formats.opaque import OpaqueFormat
from passes.formats.published import Published
from passes.quantize.format_names import examples
from tests.ir.test_quant_config import FORMATS as ANY_FORMAT


@pytest.mark.parametrize("kind", FORMATS.names())
def test_a_format_stands_in_the_table_under_its_kind(kind: str) -> None:
    assert FORMATS.find(kind).kind == kind


@pytest.mark.parametrize("form", list(formats()), ids=lambda form: form.kind)
def test_a_format_understands_its_own_examples_and_nobody_else_does(form: type[Format]) -> None:
    for name in form.examples:
        assert name in examples()
        assert [other for other in formats() if other.named(name) is not None] == [form]
        read = form.named(name)
        assert read is not None and read.label == name


@given(ANY_FORMAT)
@settings(deadline=None)
def test_a_label_is_read_as_the_format_it_names(form: Format) -> None:
    read = format_named(form.label)
    assert read is not None
    assert read.with_scales_in("F16") == form


@pytest.mark.parametrize(
    ("form", "method", "rounding"),
    [
        (PackQuantized(4, 64), "gptq", Rounding("gptq", 4, 64)), (Gptq(3, -1), "rtn", Rounding("rtn", 3, -1)),
        (FloatQuantized(), "rtn", Rounding("fp8", 0)), (IntQuantized(), "gptq", Rounding("w8a8", 0)),
        (Exl3(3.5), "exl3", Rounding("exl3", 3.5)), (Exl2Bounded(4.65), "exl2", Rounding("exl2", 4.65)),
        (Resident("nf4"), "rtn", Rounding("rtn", 4, 64)),
    ],
)  # fmt: skip
def test_the_fit_of_quality_sees_method_bits_and_groups(form: Format, method: str, rounding: Rounding) -> None:
    assert form.rounding(method) == rounding


def opaque(method: str, bits: int, size: int = 256) -> OpaqueFormat:
    return OpaqueFormat(method, size, size, (("qweight", "I32", (size * bits // 32, size)),))


@pytest.mark.parametrize(
    ("form", "kernel"),
    [
        (Dense(), "w16"), (PackQuantized(8, -1), "w8"), (PackQuantized(4), "w4"), (Gptq(4), "gptq"), (Published("nf4"), "bnb"),
        (Published("fp8-block"), "fp8"), (Resident("fp8-online"), "fp8"), (opaque("fbgemm_fp8", 8), "fp8"), (opaque("gptq", 4), "w4"),
        (opaque("gptq", 8), "w8"), (opaque("gptq", 4, 8192), "w4"),
    ],
)  # fmt: skip
def test_kernels_follow_what_is_stored_whatever_its_size(form: Format, kernel: str) -> None:
    assert form.kernel is KernelFamily(kernel)


def test_engines_know_a_publishers_layout_by_its_own_name() -> None:
    assert Published("fp8-block").engine_name == "fp8-block" and opaque("awq", 4).engine_name == "awq"
    assert Published("fp8-block", 64).block == (64, 64) and Published("nf4").block is None
    assert Gptq(4, 64, desc_act=True).act_order and Gptq().engine_name == "gptq"

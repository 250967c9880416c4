"""Every format: what it says it stores is what it stores, and what it stores is read back exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.errors import TightfitError
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.exllama.exl3 import Exl3
from passes.formats.format import Format, Quantized
from passes.formats.fp4 import Mxfp4, Nvfp4
from passes.formats.gptq import Gptq
from passes.formats.tensor import Tensor

_NAMES = {
    torch.int32: "I32", torch.int64: "I64", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])

FORMATS: list[Format] = [
    *(Gptq(bits, size, symmetric, version=version) for bits in (2, 3, 4, 8) for size in (-1, 32, 64) for symmetric in (True, False)
      for version in (1, 2)),
    *(PackQuantized(bits, size, symmetric, dtype) for bits in (4, 8) for size in (-1, 32, 64) for symmetric in (True, False)
      for dtype in ("BF16", "F16")),
    Awq(32), Awq(64), Awq(32, symmetric=True), IntQuantized(), IntQuantized(static=True), FloatQuantized(), FloatQuantized(0),
    FloatQuantized(static=True), FloatQuantized(-1, (128, 128)),
    Nvfp4(), Nvfp4(activations=False), Mxfp4(),
]  # fmt: skip


def described(stored: dict[str, torch.Tensor]) -> set[Tensor]:
    return {Tensor(name, _NAMES[t.dtype], tuple(t.shape)) for name, t in stored.items()}


def _groups(form: Format, columns: int) -> int:
    size = getattr(form, "group_size", -1)
    return 1 if size <= 0 else columns // size


def _quantized(form: Format, rows: int, columns: int, seed: int) -> Quantized:
    g = torch.Generator().manual_seed(seed)
    groups = _groups(form, columns)
    scale = (torch.rand(rows, groups, generator=g) + 0.5).bfloat16().half().float() / 128
    if isinstance(form, Nvfp4 | Mxfp4):
        codes = _E2M1[torch.randint(0, 8, (rows, columns), generator=g)]
        codes = codes * (torch.randint(0, 2, codes.shape, generator=g) * 2 - 1) + 0.0  # no negative zeros
        if isinstance(form, Mxfp4):
            return Quantized(codes, torch.exp2(torch.randint(-20, 5, (rows, groups), generator=g).float()))
        levels = torch.randint(1, 448, (rows, groups), generator=g).float().to(torch.float8_e4m3fn).float()
        total = torch.tensor([64.0])
        return Quantized(codes, levels / total, global_scale=total, input_peak=3.5)
    if isinstance(form, FloatQuantized):
        codes = torch.randn(rows, columns, generator=g).mul(60).to(torch.float8_e4m3fn)
        if form.block:
            scale = torch.rand(-(-rows // 128), -(-columns // 128), generator=g).add(1).bfloat16().float()
        elif form.group_size == 0:
            scale = scale[:1, :1]
        return Quantized(codes, scale, input_peak=3.5)
    assert form.grid is not None
    half = 1 << (form.grid.bits - 1)
    if form.grid.symmetric:
        codes = torch.randint(-half, half, (rows, columns), generator=g, dtype=torch.int32)
        return Quantized(codes, scale, input_peak=3.5)
    zero = torch.randint(form.grid.least_zero, 2 * half, (rows, groups), generator=g, dtype=torch.int32)
    return Quantized(torch.randint(0, 2 * half, (rows, columns), generator=g, dtype=torch.int32), scale, zero)


def _meaning(form: Format, quantized: Quantized) -> torch.Tensor:
    """What the codes say, independent of how they are stored."""
    codes, scale = quantized.codes.float(), quantized.scale.float()
    rows, columns = codes.shape
    if isinstance(form, FloatQuantized) and form.block:
        wide = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        return codes * wide
    if scale.numel() == 1:
        return codes * scale
    size = columns // scale.shape[1]
    if quantized.zero_point is not None:
        codes = codes - quantized.zero_point.repeat_interleave(size, 1)
    return codes * scale.repeat_interleave(size, 1)


@pytest.mark.parametrize("form", FORMATS, ids=repr)
@settings(max_examples=8, deadline=None)
@given(
    rows=st.integers(1, 6).map(lambda n: 32 * n),
    columns=st.integers(1, 4).map(lambda n: 64 * n),
    seed=st.integers(0, 99),
)
def test_round_trip(form, rows, columns, seed):
    columns += -columns % 128 if getattr(form, "block", None) else 0
    quantized = _quantized(form, rows, columns, seed)
    assert form.illegal(rows, columns) is None
    stored = form.encode("m", quantized)
    assert described(stored) == set(form.tensors("m", rows, columns))
    assert form.bytes(rows, columns) == sum(t.numel() * t.element_size() for t in stored.values())
    assert torch.equal(form.decode("m", stored, torch.float32), _meaning(form, quantized))


def test_activation_order_survives():
    form = Gptq(4, 32, desc_act=True)
    quantized = _quantized(form, 64, 128, 0)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    moved = Quantized(quantized.codes, quantized.scale, None, torch.arange(128)[order] // 32)
    decoded = form.decode("m", form.encode("m", moved), torch.float32)
    assert torch.equal(decoded, moved.codes.float() * moved.scale[:, moved.group_of_input])


def test_gptq_version_1_stores_the_zero_point_less_one():
    stored = {v: Gptq(4, 32, version=v).encode("m", _quantized(Gptq(4, 32), 32, 64, 0))["m.qzeros"] for v in (1, 2)}
    assert set(stored[1].flatten().tolist()) == {0x77777777}
    assert set(stored[2].flatten().tolist()) == {0x88888888 - (1 << 32)}


@pytest.mark.parametrize("form", FORMATS, ids=repr)
def test_codes_are_read_by_position(form):
    """One changed code changes one weight, the one in its place."""
    base = _quantized(form, 64, 64, 3)
    changed = base.codes.clone()
    changed[5, 37] = 1 if changed[5, 37].float() != 1 else 0
    other = Quantized(changed, base.scale, base.zero_point, None, base.global_scale, base.input_peak)
    decoded = [form.decode("m", form.encode("m", each), torch.float32) for each in (base, other)]
    assert (decoded[0] != decoded[1]).nonzero().tolist() == [[5, 37]]


@pytest.mark.parametrize(
    ("form", "shape", "code"),
    [
        (Gptq(4, 128), (576, 576), "group_size_128_does_not_divide_576"),
        (PackQuantized(4, 128), (576, 576), "group_size_128_does_not_divide_576"),
        (Gptq(4, -1), (50, 64), "gptq_needs_multiples_of_32"),
        (Gptq(5, 32), (64, 64), "gptq_bits"),
        (PackQuantized(3, 32), (64, 64), "pack_quantized_bits"),
        (Awq(32), (36, 64), "awq_needs_multiples_of_8"),
        (Exl3(3.5), (576, 576), "exl3_needs_multiples_of_128"),
        (Exl3(9), (128, 128), "exl3_bits"),
        (FloatQuantized(-1, (128, 128)), (576, 576), "fp8_block_does_not_divide"),
    ],
)
def test_shapes_that_a_format_cannot_hold(form, shape, code):
    assert form.illegal(*shape).code == code


def test_exl3_sizes_are_the_trellis_and_two_vectors():
    assert Exl3(3.5).bytes(4096, 4096) == 4096 * 4096 * 7 // 16 + 2 * 2 * 4096
    with pytest.raises(TightfitError, match="ExLlamaV3"):
        Exl3(3.5).encode("m", _quantized(IntQuantized(), 128, 128, 0))

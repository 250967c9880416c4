"""EXL2: ExLlamaV2's layouts and sizes to the digit, exact round trips, padding, permutation, channel renumbering."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.formats.exllama.exl2 import WIDTHS, Exl2
from passes.formats.exllama.exl2_options import ATTENTION, HEAD, MLP, parse_shares
from tests.formats.test_codecs import described

#: Bits a weight on Llama-3-8B's shapes that ExLlamaV2 0.3.2 reports for its options.
_ATTENTION_BPW = [
    2.138, 2.199, 2.283, 2.677, 3.169, 3.170, 4.044, 4.047, 4.082, 4.138, 4.170, 4.190, 4.274, 4.329, 5.256, 5.329, 6.044, 6.338, 8.044,
]  # fmt: skip
_MLP_BPW = [
    2.245, 2.323, 2.596, 2.912, 3.283, 3.366, 3.619, 4.137, 4.198, 4.266, 4.348, 5.249, 5.331, 6.071, 6.303, 6.869, 8.035,
]  # fmt: skip
_ALL = sorted({form for row in (*ATTENTION, *MLP) for form in row} | set(HEAD.values()), key=lambda f: f.label)


@dataclass
class Codes:
    codes: torch.Tensor
    scale_index: torch.Tensor
    scale_max: torch.Tensor
    permutation: torch.Tensor
    groups: tuple[tuple[int, int], ...]


def _codes(form: Exl2, rows: int, columns: int, seed: int) -> Codes:
    g = torch.Generator().manual_seed(seed)
    groups = form.layout(rows)
    codes = torch.cat([torch.randint(0, 1 << bits, (n, columns), generator=g) for bits, n in groups])
    index = torch.randint(1, 17, (len(groups), columns), generator=g)
    top = (torch.rand(len(groups), generator=g) + 0.02).half()
    return Codes(codes.to(torch.uint8), index.to(torch.uint8), top, torch.randperm(rows, generator=g), groups)


def _meaning(codes: Codes) -> torch.Tensor:
    """The decoding rule, written out group by group and by position: W[perm[j], c]."""
    out, row = torch.empty(codes.codes.shape, dtype=torch.float16), 0
    for group, (bits, length) in enumerate(codes.groups):
        m = (codes.scale_max[group].float() / 256).half().float()
        scale = (codes.scale_index[group].float() ** 2 * m).half().float()
        part = codes.codes[row : row + length].float() - (1 << (bits - 1))
        out[codes.permutation[row : row + length]] = (part * scale).half()
        row += length
    return out.T.float()


@pytest.mark.parametrize("form", _ALL, ids=lambda f: f.label)
@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 20).map(lambda n: 32 * n), columns=st.integers(1, 80), seed=st.integers(0, 99))
def test_round_trip(form, rows, columns, seed):
    codes = _codes(form, rows, columns, seed)
    assert form.illegal(columns, rows) is None
    stored = form.encode_matrix("m", codes)
    assert described(stored) == set(form.tensors("m", columns, rows))
    assert form.bytes(columns, rows) == sum(t.numel() * t.element_size() for t in stored.values())
    decoded = form.decode("m", stored, torch.float32)
    assert torch.equal(decoded[:columns], _meaning(codes))
    assert not decoded[columns:].any(), "padding decodes to zero"


@given(form=st.sampled_from(_ALL), inputs=st.integers(1, 2047).map(lambda n: 32 * n))
def test_layouts_cover_every_input_in_multiples_of_32_widest_first(form, inputs):
    groups = form.layout(inputs)
    assert sum(rows for _, rows in groups) == inputs
    assert all(rows > 0 and rows % 32 == 0 for _, rows in groups)
    widths = [bits for bits, _ in groups]
    assert widths == sorted(widths, reverse=True) and set(widths) <= set(WIDTHS)


def _bpw(forms, shapes):
    return 8 * sum(f.bytes(*s) for f, s in zip(forms, shapes, strict=True)) / sum(n * k for n, k in shapes)


def test_options_have_the_bits_that_exllamav2_reports():
    attention = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)]
    mlp = [(14336, 4096), (14336, 4096), (4096, 14336)]
    assert [round(_bpw((qk, qk, v, o), attention), 3) for qk, v, o in ATTENTION] == _ATTENTION_BPW
    assert [round(_bpw(row, mlp), 3) for row in MLP] == _MLP_BPW
    head = {bits: round(form.bits_per_weight(128256, 4096), 2) for bits, form in HEAD.items()}
    assert head == {2: 2.73, 3: 3.28, 4: 4.44, 5: 5.19, 6: 6.34, 8: 8.03}


def test_straddling_values_of_five_bits():
    """Row 6 of a 5-bit group lies in bits 30-31 of word 0 and bits 0-2 of word 1."""
    form = parse_shares("5b/32")
    codes = _codes(form, 32, 32, 0)
    codes.codes[:] = 0
    codes.codes[6] = 0b10110
    words = form.encode_matrix("m", codes)["m.q_weight"][:, 0].tolist()
    assert [word & 0xFFFFFFFF for word in words] == [0b10 << 30, 0b101, 0, 0, 0]


@pytest.mark.parametrize(
    ("form", "shape", "code"),
    [
        (Exl2(), (64, 100), "exl2_needs_multiples_of_32"),
        (Exl2(((0.5, 4, 32), (0.5, 5, 32))), (64, 64), "exl2_widths"),
        (Exl2(((1.0, 7, 32),)), (64, 64), "exl2_widths"),
        (Exl2(((1.0, 4, 16),)), (64, 64), "exl2_group_size"),
        (Exl2(), (64, 65536), "exl2_too_many_inputs"),
    ],
)
def test_what_no_reader_decodes_is_illegal(form, shape, code):
    assert form.illegal(*shape).code == code

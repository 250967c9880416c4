"""What compressed-tensors itself writes for a matrix is what we describe and write, byte for byte."""

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
from safetensors.torch import save

from passes.algorithms.method import Matrix, RoundToNearest
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.fp4 import Mxfp4, Nvfp4
from passes.ir.model import Linear, Role
from tests.formats.test_codecs import _meaning, _quantized, described

_FORMATS = [
    *(PackQuantized(bits, size, symmetric) for bits in (4, 8) for size in (-1, 32) for symmetric in (True, False)),
    IntQuantized(), IntQuantized(static=True), FloatQuantized(), FloatQuantized(0), FloatQuantized(static=True),
    FloatQuantized(-1, (128, 128)), Nvfp4(False), Nvfp4(), Mxfp4(),
]  # fmt: skip


def _package_writes(form, quantized):
    """compressed-tensors' compressor, fed with the weights that the codes stand for."""
    scheme = QuantizationScheme(targets=["Linear"], **_arguments(form))
    dtype = torch.float32 if isinstance(form, Nvfp4 | Mxfp4) else torch.bfloat16
    state = {"weight": _meaning(form, quantized), "weight_scale": quantized.scale.to(dtype)}
    if isinstance(form, FloatQuantized) and form.group_size == 0 and not form.block:
        state["weight_scale"] = state["weight_scale"].reshape(1)
    if quantized.global_scale is not None:
        state["weight_scale"] = quantized.scale * quantized.global_scale
        state["weight_global_scale"] = quantized.global_scale
        if form.activations:
            state["input_global_scale"] = 1 / quantized.input_scale("m", 448 * 6)
    if getattr(form, "static", False):
        state["input_scale"] = quantized.input_scale("m", form.grid.bounds[1])
    if quantized.zero_point is not None:
        half = 1 << (form.bits - 1)
        state["weight_zero_point"] = (quantized.zero_point - half).to(torch.int8)
    return BaseCompressor.get_value_from_registry(form.kind).compress(state, scheme)


@pytest.mark.parametrize("form", _FORMATS, ids=repr)
def test_the_package_writes_the_same_bytes(form):
    quantized = _quantized(form, 64, 128, 7)
    theirs = {f"m.{name}": tensor.data for name, tensor in _package_writes(form, quantized).items()}
    ours = form.encode("m", quantized)
    assert described(theirs) == set(form.tensors("m", 64, 128))
    assert save(ours) == save({name: tensor.contiguous() for name, tensor in theirs.items()})


@pytest.mark.parametrize("form", _FORMATS, ids=repr)
def test_the_package_reads_our_config(form):
    group = {"targets": ["Linear"], "format": form.kind, **form.scheme()}
    config = QuantizationConfig(config_groups={"group_0": group}, format=form.kind, quant_method="compressed-tensors")
    assert config.config_groups["group_0"].weights.num_bits in (4, 8)


@pytest.mark.parametrize("form", [Nvfp4(), Mxfp4()], ids=repr)
def test_four_bit_floats_are_rounded_as_the_package_rounds_them(form):
    """Rounding to nearest with the package's own scales and casting gives the same bytes as ours."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(3)).mul(0.02)
    linear = Linear("m", Role.Q, 64, 128, storage=form)
    [done] = RoundToNearest().store([Matrix("m", linear, weight, 2.0)], None, torch.float32)
    scale = done.quantized.scale
    cast = cast_to_fp4((weight.reshape(64, -1, form.group_size) / scale[..., None]).clamp(-6, 6))
    assert torch.equal(done.quantized.codes, cast.reshape(64, 128))
    assert torch.equal(done.decoded, (cast * scale[..., None]).reshape(64, 128))
    if isinstance(form, Mxfp4):
        theirs = generate_mx_scales(weight.reshape(64, -1, 32).abs().amax(-1))
        assert torch.equal(done.tensors["m.weight_scale"], theirs.to(torch.uint8))
    if isinstance(form, Nvfp4):
        total = generate_gparam(weight.min(), weight.max())
        groups = weight.reshape(64, -1, form.group_size)
        theirs, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), _arguments(form)["weights"], total)
        assert float(done.quantized.global_scale) == pytest.approx(float(total), rel=1e-6)
        assert torch.equal(done.tensors["m.weight_scale"].float(), theirs.to(torch.float8_e4m3fn).float())


def _arguments(form):
    return {k: QuantizationArgs(**v) if v else None for k, v in form.scheme().items() if k != "output_activations"}

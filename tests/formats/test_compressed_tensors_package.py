"""What compressed-tensors itself writes for a matrix is what we describe and write, byte for byte."""

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import save

from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.fp4 import Mxfp4, Nvfp4
from tests.formats.test_codecs import _meaning, _quantized, described

_FORMATS = [
    *(PackQuantized(bits, size, symmetric) for bits in (4, 8) for size in (-1, 32) for symmetric in (True, False)),
    IntQuantized(), FloatQuantized(), FloatQuantized(0), FloatQuantized(-1, (128, 128)), Nvfp4(False), Nvfp4(), Mxfp4(),
]  # fmt: skip


def _package_writes(form, quantized):
    """compressed-tensors' compressor, fed with the weights that the codes stand for."""
    arguments = {k: QuantizationArgs(**v) if v else None for k, v in form.scheme().items() if k != "output_activations"}
    scheme = QuantizationScheme(targets=["Linear"], **arguments)
    dtype = torch.float32 if isinstance(form, Nvfp4 | Mxfp4) else torch.bfloat16
    state = {"weight": _meaning(form, quantized), "weight_scale": quantized.scale.to(dtype)}
    if isinstance(form, FloatQuantized) and form.group_size == 0 and not form.block:
        state["weight_scale"] = state["weight_scale"].reshape(1)
    if quantized.global_scale is not None:
        state["weight_scale"] = quantized.scale * quantized.global_scale
        state["weight_global_scale"] = quantized.global_scale
        if form.activations:
            state["input_global_scale"] = quantized.input_scale
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

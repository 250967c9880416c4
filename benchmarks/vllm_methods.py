"""The least compute capability of vLLM's quantizations, as their classes' `get_min_capability` say it, beside our table of methods."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from benchmarks.vllm_wheel import Found, Source
from targets.engines.vllm.rules.methods import least_capability
from targets.engines.vllm.rules.versions import Rules

_FOLDER = "model_executor/layers/quantization"
#: vLLM's classes, by the rows of `targets/engines/vllm/rules/methods.py` that say the same.
_CLASSES = {
    "CompressedTensorsWNA16": "pack-quantized", "CompressedTensorsW4A8Fp8": "pack-quantized/fp8", "CompressedTensorsW8A8Int8": "int-quantized",
    "CompressedTensorsW8A16Fp8": "float-quantized", "CompressedTensorsW4A4Fp4": "nvfp4-pack-quantized",
    "CompressedTensorsW4A16Mxfp4": "compressed-tensors/mx", "CompressedTensorsW4A4Mxfp4": "compressed-tensors/mx",
    "CompressedTensorsConfig": "compressed-tensors", "GPTQConfig": "gptq", "AutoGPTQConfig": "gptq", "AWQConfig": "awq",
    "AutoAWQConfig": "awq", "AutoRoundConfig": "auto-round", "INCConfig": "auto-round", "Fp8Config": "fp8", "FBGEMMFp8Config": "fbgemm_fp8",
    "ModelOptFp8Config": "modelopt/fp8", "ModelOptNvFp4Config": "nvfp4-modelopt", "ModelOptMxFp8Config": "mxfp8", "Mxfp4Config": "mx",
    "BitsAndBytesConfig": "bitsandbytes", "GGUFConfig": "gguf", "TorchAOConfig": "torchao", "QuarkConfig": "quark",
    "QuarkW8A8Fp8": "quark-fp8", "QuarkW8A8Int8": "quark-int8", "FPQuantConfig": "fp_quant", "HQQMarlinConfig": "hqq", "AQLMConfig": "aqlm",
}  # fmt: skip


def capabilities(source: Source) -> Found | None:
    """Give what each class of the table asks for at least, of those that the version has; None where it has none."""
    found = {
        node.name: min(asked)
        for path in _files(source)
        for node in ast.walk(source.tree(path))
        if isinstance(node, ast.ClassDef) and node.name in _CLASSES and (asked := list(_returned(node)))
    }
    return Found(found, _FOLDER) if found else None


def ours(names: Iterable[str], rules: Rules) -> dict[str, int | None]:
    """Give what our rules say of these classes."""
    return {name: least_capability(_CLASSES[name], rules) for name in names}


def _files(source: Source) -> Iterator[str]:
    root = source.folder / source.package
    yield from (str(file.relative_to(root)) for file in sorted((root / _FOLDER).rglob("*.py")))


def _returned(node: ast.ClassDef) -> Iterator[int]:
    """The numbers that the class's `get_min_capability` returns: more than one where it depends on an emulation."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "get_min_capability":
            for inner in ast.walk(method):
                match inner:
                    case ast.Return(value=ast.Constant(value=int() as number)):
                        yield number

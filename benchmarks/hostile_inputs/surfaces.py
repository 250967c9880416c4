"""What reads what others wrote, each with a good input, how it is made bad, and the call that reads it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.hostile_inputs.mutate import mutated, spec_text, written
from passes.ir import catalog
from passes.ir.architectures import build_ir
from passes.ir.sources import open_model
from planner.certificate import NAME, Certificate, FinishedStep, MeasuredQuality, PredictedFigures, read_certificate
from planner.check import check
from planner.cli.main import application
from planner.explain.diff import diff
from planner.job_graph import result_graph
from planner.plan.codec import to_json
from planner.plan.document import PlanDocument, digest, spec_of
from planner.plan.lock import staleness
from planner.plan.make import plan
from planner.plan.saved import load_plan
from planner.spec.parse import load_spec, parse_spec
from targets.engines.engine import Parallel, Settings
from targets.gpu import find_gpu
from targets.machine.profile import believed_profile, profile_path

ROOT = Path(__file__).parents[2]
#: Makes one input in a folder: what reads it, and the input as it is shown.
Surface = Callable[[Random, Path], tuple[Callable[[], object], str]]

_SPEC = """\
model: Qwen/Qwen2.5-7B-Instruct
target: { gpu: rtx-4090, count: 2 }
engine: { name: vllm, version: 0.26.0, settings: { max_num_seqs: 8 } }
workload: { context: 8192, concurrency: 4, input_tokens: 2000, output_tokens: 400 }
goals: { ttft: 2 s, decode: 20 tok/s, quality: { max_perplexity_increase: 5% }, prefer: quality }
passes: { prune: { depth: 2 }, quantize: { methods: [gptq, awq] }, kv_cache: [auto, fp8] }
calibration: { dataset: self, samples: 128, length: 1024 }
"""
_CARD = """\
model: Qwen/Qwen2.5-1.5B-Instruct
target:
  gpu: { name: a card, memory_gib: 15.5, bandwidth_gb_s: 500, compute_capability: 8.6, fp16_bf16_dense_tflops: 60, int8_dense_tops: 120 }
  reserve: 512 MiB
engine: vllm
"""
TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256, "torch_dtype": "float16",
    "tie_word_embeddings": True,
}  # fmt: skip
_WEIGHTS = {
    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False, "block_structure": None,
}  # fmt: skip
_QUANTIZATIONS: tuple[dict[str, Any], ...] = (
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "checkpoint_format": "gptq",
     "dynamic": {"+:.*down_proj": {"bits": 8, "group_size": 64}, "-:.*layers\\.0\\..*": {}}, "modules_to_not_convert": ["lm_head"]},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm", "modules_to_not_convert": None},
    {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*gate$"], "kv_cache_scheme": None,
     "config_groups": {"group_0": {"targets": ["Linear"], "weights": _WEIGHTS, "input_activations": None},
                       "group_1": {"targets": ["re:.*down_proj"], "weights": _WEIGHTS | {"num_bits": 8, "strategy": "channel"},
                                   "input_activations": {"num_bits": 8, "type": "int", "dynamic": True}}}},
    {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
                                                  "exclude_modules": ["lm_head"]}},
    {"quant_algo": "FP8", "producer": {"name": "modelopt", "version": "0.29"}, "exclude_modules": ["lm_head"]},
    {"quant_method": "exl2", "version": "0.3.2", "bits": 4.25, "head_bits": 6, "calibration": {"rows": 115, "length": 2048}},
    {"quant_method": "exl3", "version": "0.0.6", "bits": 4.0, "head_bits": 6},
    {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "ignored_layers": []},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "packing_format": "auto_round:auto_gptq"},
)  # fmt: skip


@cache
def _specs() -> tuple[str, ...]:
    return (*(path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.yaml"))), _SPEC, _CARD)


def specs(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    text, file = spec_text(rng, rng.choice(_specs())), folder / "spec.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    return (lambda: plan(load_spec(file))) if rng.random() < 0.1 else (lambda: load_spec(file)), text


def _checked(rng: Random, folder: Path) -> Callable[[], object]:
    engine = rng.choice(["vllm", "vllm", "exllamav2", "exllamav3"])
    card = rng.choice(["RTX 4090", "A100 80GB", "H100", "T4", "MI300X", "24GB"])
    weights = rng.choice([None, None, "w4a16-g128", "fp8", "exl2-4.0", "awq-4-g64", "gptq-4-g128", "exl3-4"])
    settings = Settings(parallel=Parallel(rng.choice([1, 2, 3])))
    context = rng.choice([None, 4096])
    return lambda: check(str(folder), card, engine, settings=settings, context=context, weights=weights).as_json()


def only(folder: Path, **files: bytes) -> None:
    """The files of a model's folder, by name with `_` for the dot before the ending."""
    for old in folder.iterdir():
        old.unlink()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)


def configs(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    config = mutated(rng, catalog.entry(rng.choice(catalog.ids())).config)
    raw = written(rng, config)
    only(folder, **{"config.json": raw})
    if rng.random() < 0.05:
        spec = f"model: {folder}\ntarget: {{ gpu: rtx-4090 }}\npasses: {{ prune: {{ depth: 2 }} }}\n"
        return lambda: plan(parse_spec(spec)), raw.decode("utf-8", "replace")
    return _checked(rng, folder), raw.decode("utf-8", "replace")


@cache
def _dense() -> tuple[str, ...]:
    return tuple(name for name in catalog.ids() if "quantization_config" not in catalog.entry(name).config)


def quantizations(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    said = mutated(rng, rng.choice(_QUANTIZATIONS), 3)
    config = dict(catalog.entry(rng.choice(_dense())).config)
    beside = rng.choice(["config.json", "config.json", "config.json", "hf_quant_config.json", "quantize_config.json"])
    if beside == "config.json":
        config[rng.choice(["quantization_config", "quantization_config", "compression_config"])] = said
        only(folder, **{"config.json": json.dumps(config).encode()})
    else:
        only(folder, **{"config.json": json.dumps(config).encode(), beside: written(rng, said)})
    return _checked(rng, folder), json.dumps([beside, config["architectures"], said])


@cache
def _checkpoint() -> tuple[dict[str, Any], int]:
    """The header of a checkpoint of `TINY`, and the bytes of its data."""
    header: dict[str, Any] = {}
    end = 0
    for tensor in build_ir(TINY, "tiny").tensors():
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.bytes],
        }
        end += tensor.bytes
    return header, end


def tiny_checkpoint() -> tuple[bytes, bytes]:
    """The whole header of a checkpoint of `TINY`, and its data."""
    header, size = _checkpoint()
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw, bytes(size)


def headers(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    header, size = _checkpoint()
    raw = written(rng, mutated(rng, header)) if rng.random() < 0.8 else json.dumps(header).encode()
    if rng.random() < 0.2:
        raw = bytes(rng.choice(raw) if rng.random() < 0.02 else byte for byte in raw)
    length = len(raw) if rng.random() < 0.8 else rng.choice([0, 7, len(raw) + 100, 2**40, 2**63 - 1])
    data = bytes(rng.choice([size, size, size, 0, 100]))
    only(
        folder,
        **{"config.json": json.dumps(TINY).encode(), "model.safetensors": struct.pack("<Q", length) + raw + data},
    )
    return _checked(rng, folder), raw.decode("utf-8", "replace")


def indexes(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    header, size = _checkpoint()
    raw, file = json.dumps(header).encode(), "model-00001-of-00001.safetensors"
    index = mutated(rng, {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(header, file)})
    said = written(rng, index)
    only(
        folder,
        **{
            "config.json": json.dumps(TINY).encode(), file: struct.pack("<Q", len(raw)) + raw + bytes(size),
            "model.safetensors.index.json": said,
        },
    )  # fmt: skip
    return _checked(rng, folder), said.decode("utf-8", "replace")


def _gguf_value(value: Any) -> bytes:
    """A metadata value with its type: u32, f32, string, array of strings, array of arrays."""
    if isinstance(value, list):
        items = [_gguf_value(item) for item in value]
        kind = items[0][:4] if items else struct.pack("<I", 4)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return struct.pack("<IQ", 8, len(raw)) + raw
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<Iq", 11, value % 2**63) if value >= 2**32 or value < 0 else struct.pack("<II", 4, value)
    return struct.pack("<Id", 12, value if isinstance(value, float) else 0.0)


def gguf_bytes(metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> bytes:
    """A GGUF file of F32 tensors, row-major shapes."""

    def name(text: str) -> bytes:
        raw = text.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw)) + raw

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    out += b"".join(name(key) + _gguf_value(value) for key, value in metadata.items())
    offset = 0
    for tensor, shape in tensors.items():
        out += (
            name(tensor) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in reversed(shape))
        )
        out += struct.pack("<IQ", 0, offset)
        offset += 4 * _elements(shape)
    return out + bytes(-len(out) % 32) + bytes(offset)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


_GGUF = {
    "general.architecture": "llama", "general.alignment": 32, "llama.block_count": 1, "llama.context_length": 128,
    "llama.embedding_length": 64, "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 10000.0, "tokenizer.ggml.tokens": [f"<{number}>" for number in range(32)],
}  # fmt: skip
_GGUF_TENSORS: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (32, 64), "output_norm.weight": (64,), "blk.0.attn_norm.weight": (64,), "blk.0.ffn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64), "blk.0.attn_k.weight": (32, 64), "blk.0.attn_v.weight": (32, 64), "blk.0.attn_output.weight": (64, 64),
    "blk.0.ffn_gate.weight": (96, 64), "blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_down.weight": (64, 96),
}  # fmt: skip


def ggufs(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    metadata = mutated(rng, _GGUF) if rng.random() < 0.7 else dict(_GGUF)
    raw = gguf_bytes({key: value for key, value in metadata.items() if value is not None}, _GGUF_TENSORS)
    start = len(raw) - 4 * sum(map(_elements, _GGUF_TENSORS.values()))
    how = rng.random()
    if how < 0.3:
        at = rng.randrange(start)
        raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    elif how < 0.4:
        at = rng.randrange(start)
        raw = raw[:at] + struct.pack("<Q", rng.choice([0, 1, 2**31, 2**40, 2**64 - 1])) + raw[at + 8 :]
    elif how < 0.5:
        raw = raw[: rng.randrange(len(raw))]
    elif how < 0.55:
        deep = b"".join(struct.pack("<IQ", 9, 1) for _ in range(5000))
        raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"x" + struct.pack("<I", 9) + deep
    file = folder / "model.gguf"
    only(folder, **{"model.gguf": raw})
    return lambda: check(str(file), "RTX 4090", "vllm", context=64).as_json(), repr(raw[:start])


@cache
def planned() -> PlanDocument:
    return plan(parse_spec(_SPEC.replace("{ prune: { depth: 2 }, ", "{ prune: allow, "))).document


@cache
def _certificate() -> dict[str, Any]:
    document = planned()
    chosen = document.decision
    made = Certificate(
        format_version=document.format_version, model=document.model, label=chosen.label, plan_digest=document.digest, engine=chosen.engine,
        checks=(), goals=(), quality=MeasuredQuality(calibration_digest="c", evaluation_digest="e", predicted=chosen.quality),
        predicted=PredictedFigures(chosen.memory, chosen.kv_cache, chosen.speed), tensor_bytes=chosen.tensor_bytes,
        steps=(FinishedStep("walk", 310.0, None, 1 << 20, False),), losses={}, without_calibration=(), holds=True,
        planned_passes=chosen.passes,
    )  # fmt: skip
    found: dict[str, Any] = to_json(made)
    return found


def plans(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    good, path = to_json(planned()), folder / "a.plan.json"
    document = mutated(rng, good, 3)
    with contextlib.suppress(ValueError, TypeError):
        document["digest"] = digest(document)
    path.write_bytes(written(rng, document))

    def read() -> None:
        command(["show", str(path)])
        found = load_plan(path)
        diff(planned(), found)
        if found.chosen is not None:
            assert isinstance(found.chosen.chain, tuple)
        staleness(found)
        spec_of(found)

    return read, difference(good, document)


def certificates(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    document, path = mutated(rng, _certificate(), 3), folder / NAME
    path.write_bytes(written(rng, document))

    def read() -> None:
        command(["show", str(path)])
        result_graph(read_certificate(path), folder)

    return read, difference(_certificate(), document)


def difference(good: Any, bad: Any) -> str:
    """What of a document was changed, one path a line."""
    if isinstance(good, dict) and isinstance(bad, dict):
        keys = [key for key in {**good, **bad} if good.get(key) != bad.get(key) or (key in good) != (key in bad)]
        return "\n".join(f"{key}.{difference(good.get(key), bad.get(key))}" for key in keys)
    if isinstance(good, list) and isinstance(bad, list) and len(good) == len(bad):
        return "\n".join(f"{n}.{difference(a, b)}" for n, (a, b) in enumerate(zip(good, bad, strict=True)) if a != b)
    return f" {good!r:.60} -> {bad!r:.60}"


_PROFILE = {
    "format_version": "1", "device": "NVIDIA GeForce RTX 4090",
    "probe": {
        "device": "NVIDIA GeForce RTX 4090", "memory_bytes": 25_000_000_000, "vector_bytes_per_s": 9.2e11, "copy_bytes_per_s": 9.1e11,
        "bf16_flops": 1.5e14, "int8_ops": 3e14, "fp8_flops": 2.8e14, "launch_s": 5e-6, "int4_flops": 1e14, "int4_vector_bytes_per_s": 2e11,
        "link_s": 2e-5, "link_bytes_per_s": 2e10,
    },
    "engines": {"vllm": {"memory": 0.9, "compute": 0.7, "step": 1e-3}},
}  # fmt: skip


def profiles(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    name = rng.choice(["RTX 4090", "cpu"])
    profile = mutated(rng, _PROFILE, 3)

    def read() -> None:
        before = os.environ.get("TIGHTFIT_HOME")
        os.environ["TIGHTFIT_HOME"] = str(folder)
        try:
            card = find_gpu(name)
            path = profile_path(card.name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(raw)
            os.utime(path, ns=(stamp, stamp))
            believed_profile(card)
            check(
                "Qwen/Qwen2.5-1.5B-Instruct", card, "vllm-cpu" if card.is_cpu else "vllm", concurrency=4, context=4096
            ).as_json()
        finally:
            path.unlink(missing_ok=True)
            os.environ.pop("TIGHTFIT_HOME") if before is None else os.environ.update(TIGHTFIT_HOME=before)

    raw, stamp = written(rng, profile), rng.randrange(10**9, 10**18)
    return read, raw.decode("utf-8", "replace")


NUMBERS = (
    "0",
    "-1",
    "1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e309",
    "9" * 12,
    "9" * 400,
    "9" * 5000,
    "",
    "x",
    "1.5",
    "é",
    "0x10",
    "2147483648",
    "1_0",
)
NAMES = (
    "", "x", "24GB", "0GB", "9" * 400 + "GB", "1.1.1GB", "cpu ", "\x00", "\ud800", "../..", "/", "~", "~nobody/x", "a/b", "é/é", "w4a16-g0",
    "exl2-0", "exl2-99", "exl2-" + "9" * 400, "exl2-1e9", "gptq-4-g" + "9" * 30, "w4a16-g" + "9" * 5000, "awq-4-g1", "exl3-0.1", "fp8_e4m3", "q4",
    "0.26.0", "999.0", "0.0.0.0", "v1", "-" * 3, "x" * 5000, "auto", "bf16", "vllm-cpu", "exllamav3", "[x]", "[/x]", "{}", "%s", "rtx-4090", "*",
)  # fmt: skip
_COUNTS = (
    "--gpus", "--tp", "--pp", "--dp", "--ep", "--context", "--concurrency", "--input-tokens", "--output-tokens", "--kv-cache-memory",
    "--gpu-memory-utilization", "--max-num-seqs", "--max-num-batched-tokens", "--block-size",
)  # fmt: skip
_WORDS = ("--model", "--gpu", "--engine", "--engine-version", "--weights", "--dtype", "--kv-cache-dtype")


def options(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    asked = {"--model": rng.choice(["Qwen/Qwen2.5-7B-Instruct", "deepseek-v3", "gemma-3-27b"]), "--gpu": "H100"}
    for _ in range(rng.choice([1, 1, 2, 3])):
        number = rng.random() < 0.6
        asked[rng.choice(_COUNTS if number else _WORDS)] = rng.choice(NUMBERS if number else NAMES)
    arguments = ["check", *(part for pair in asked.items() for part in pair), *rng.choice([[], ["--json"]])]
    return lambda: command(arguments), repr(arguments)


def command(arguments: list[str]) -> None:
    """Run the command line here. A refusal by its own parser is an answer, which it gives by leaving."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        application()(arguments)


def questions(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    path = folder / "b.plan.json"
    path.write_text(json.dumps(to_json(planned())))
    start = rng.choice(["why not ", "what if ", "why ", "", "why not awq, what if "])
    question = start + rng.choice(
        (*NAMES, *NUMBERS, "48GB", "2 cards", "99999999999 cards", "-1 cards", "0 cards", "1e9 tokens", "context 0")
    )
    return lambda: command(["explain", str(path), question]), question


_NAMED = (
    "Qwen/Qwen2.5-7B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct-AWQ",
    "smollm3",
    "deepseek-v3",
    "mistral-7b-gptq-int4",
)


def names(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    name = rng.choice(_NAMED)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(name) + 1)
        name = (
            name[:at]
            + rng.choice([rng.choice(NAMES)[:300], "/", "-", ".", "", chr(rng.randrange(1, 0xFFFF))])
            + name[at + rng.randrange(3) :]
        )
    return lambda: (open_model(name), find_gpu(name)), repr(name)

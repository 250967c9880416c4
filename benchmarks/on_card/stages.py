"""The stages, in the order in which they tell most for the time of a card."""

from __future__ import annotations

from benchmarks.on_card.staging import Stage

_HERE = "benchmarks.on_card"
#: What vLLM serves: the format's name, and whether the cache is fp8.
_SERVED = (
    ("bf16", False), ("w4a16", False), ("w4a16", True), ("fp8", False), ("fp8", True), ("awq", False), ("w8a8", False), ("gptq", False),
    ("mixed", False), ("awq", True), ("w8a8", True), ("gptq", True), ("mixed", True),
)  # fmt: skip

STAGES: tuple[Stage, ...] = (
    Stage("machine", f"{_HERE}.machines:machine"),
    Stage("calibrate", f"{_HERE}.machines:calibrate"),
    *(Stage(f"apply_{kind}", f"{_HERE}.walks:apply", {"kind": kind}) for kind in ("gptq", "awq", "fp8", "sparsegpt24", "exl2")),
    Stage("profile", f"{_HERE}.walks:profile"),
    Stage("peer_llmcompressor", f"{_HERE}.peers:peer", {"name": "llmcompressor"}),
    Stage("peer_gptqmodel", f"{_HERE}.peers:peer", {"name": "gptqmodel"}),
    Stage("smollm2", f"{_HERE}.smollm2:chain_on_both"),
    Stage("smollm2_text", f"{_HERE}.smollm2:own_text"),
    Stage("smollm2_exl2", f"{_HERE}.smollm2:exl2_options"),
    Stage("exllama", f"{_HERE}.exllama:read_back"),
    *(
        Stage(f"vllm_{form}{'_fp8kv' if fp8 else ''}", f"{_HERE}.served:serve", {"form": form, "fp8_cache": fp8})
        for form, fp8 in _SERVED
    ),
)  # fmt: skip

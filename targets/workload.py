"""What is asked of a served model: how long the conversations are and how many run at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop of `concurrency` requests, each of `input_tokens` prompt and `output_tokens` generated tokens.

    `context`: the longest sequence the engine must accept (prompt and generated tokens together), `max_model_len` in vLLM.
    `concurrency` None: not asked; the engine must start, nothing more is promised.
    """

    context: int
    concurrency: int | None = None
    input_tokens: int = 512
    output_tokens: int = 128

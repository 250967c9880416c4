"""What is asked of a served model: how long the conversations are and how many run at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop of `concurrency` requests, of `input_tokens` prompt and `output_tokens` generated tokens in the mean.

    `context`: the longest sequence the engine must accept (prompt and generated tokens together), `max_model_len` in vLLM.
    `concurrency` None: not asked; the engine must start, nothing more is promised. `input_p95`, `output_p95`: what 95 of 100 have no
    more of, where they are not all alike.
    """

    context: int
    concurrency: int | None = None
    input_tokens: int = 512
    output_tokens: int = 128
    input_p95: int | None = None
    output_p95: int | None = None

    @property
    def request_tokens(self) -> int:
        """Tokens of a request that the cache is counted for: its prompt and its answer, at their 95th percentile where that is known."""
        return (self.input_p95 or self.input_tokens) + (self.output_p95 or self.output_tokens)

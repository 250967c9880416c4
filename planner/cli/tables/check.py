"""The answer of `check`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from planner.cli.tables.parts import size

if TYPE_CHECKING:
    from planner.check import CheckDocument


def print_check(console: Console, document: CheckDocument) -> None:
    """The answer of `check`."""
    asked = f"{document.model} on {document.gpu} with {document.engine}"
    if not document.modelled:
        console.print(f"  {escape(asked)}: [bold yellow]not known[/]", markup=True)
        for reason in document.reasons:
            console.print(f"  {reason.message}")
        return
    verdict = "[bold green]fits[/]" if document.fits else "[bold red]does not fit[/]"
    console.print(f"  {escape(asked)}: {verdict} (confidence {document.confidence:.0%})", markup=True)
    memory, kv, speed = document.memory, document.kv_cache, document.speed
    left = memory.kv_cache.value
    cache = f"{size(left)} left for the KV cache" if left >= 0 else f"{size(-left)} too much before any KV cache"
    terms = {
        "weights": memory.weights, "activations": memory.activations, "non torch": memory.non_torch, "cuda graphs": memory.cuda_graphs,
    }  # fmt: skip
    parts = [f"{name} {size(term.value)}" for name, term in terms.items() if term.value]
    console.print(f"  {'   '.join(parts)}   of {size(memory.budget.value)}: {cache}")
    requests = kv.max_concurrency.value
    if math.isfinite(requests) and left >= 0:
        console.print(
            f"  {kv.tokens.value:,.0f} KV tokens, {requests:.1f} requests at once, longest context {kv.max_context:,} for one"
        )
    decode = speed.decode_tok_s_per_request
    console.print(f"  TTFT {speed.ttft_ms.value:.0f} ms   decode {decode.value:.1f} tok/s ({decode.basis})")
    for reason in document.reasons:
        said = reason.message + (f" → {reason.remedy}" if reason.remedy else "")
        console.print(f"  [red]✗[/] {escape(said)}", markup=True)
    for remedy in document.remedies:
        console.print(f"    what would do: {remedy.message}")
    for note in document.notes:
        console.print(f"  note: {note}", style="dim")

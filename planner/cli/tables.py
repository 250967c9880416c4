"""What a person sees: a plan as a table that is read in ten seconds. Everything here prints; nothing computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from passes.chain import from_json
from passes.quantize.quantize import Quantize
from planner.goals import Goal
from targets.quantity import Quantity

_GIB = 1 << 30
_BAR = 50


def print_plan(console: Console, document: Mapping[str, Any], card: str, saved: str | None) -> None:
    """A plan: what was chosen, memory against the card, goals, why others lost, one line to remember."""
    chosen = document["chosen"]
    lock = document["lock"]
    count = lock["gpu"]["count"]
    cards = f"{count} × {card}" if count > 1 else card
    console.print()
    model = f"[bold]{document['model']}[/], {_count(document['weights'])} weights"
    console.print(f"  {model}    {cards}, {lock['gpu']['memory_bytes'] / _GIB:.2f} GiB usable")
    console.print()
    if chosen is None:
        console.print(f"  [bold red]No plan meets the goals[/] ({document['searched']:,} candidates). Nearest:")
        _print_rejected(console, document["rejected"][:5])
        console.print()
        for number, other in enumerate(document["alternatives"]):
            console.print(
                f"{'  Instead  ' if number == 0 else '           '}[bold]{other['change']}[/]: {other['candidate']}"
            )
        if document["alternatives"]:
            console.print()
        _print_illegal(console, document["illegal"])
        console.print("  [bold]No plan.[/] Loosen a goal, choose another card, or a smaller model.")
        return
    chain = "  →  ".join(_step(step) for step in chosen["passes"]) or "as it is"
    engine = f"{chosen['engine']['name']} {chosen['engine']['version'] or ''}".strip()
    console.print(f"  Plan     [bold]{chain}[/]    {engine}    {document['searched']:,} candidates")
    console.print()
    _print_memory(console, chosen, document["spec"]["workload"]["context"])
    _print_goals(console, chosen)
    console.print(f"  Graph    {_graph(chosen)}")
    console.print()
    if document["rejected"]:
        console.print("  Why not")
        _print_rejected(console, document["rejected"][:3])
        more = document["searched"] - 1 - min(3, len(document["rejected"]))
        if more > 0:
            console.print(f"           ({more:,} more: optimize explain)", style="dim")
        console.print()
    _print_illegal(console, document["illegal"])
    for note in chosen["notes"]:
        console.print(f"  Note     {note}", style="dim")
    if not chosen["executable"]:
        console.print(f"  [yellow]Not executable:[/] {'; '.join(chosen['missing'])}")
    work = chosen["apply"]
    console.print(
        f"  apply needs about {_time(work['seconds']['value'])} on this machine, {_size(work['memory_bytes']['value'])} of memory,"
        f" {_size(work['disk_bytes'])} of disk."
    )
    size = chosen["tensor_bytes"]
    tail = f" Saved to {saved}." if saved else ""
    action = (
        f"Next: optimize apply {saved or ''}".rstrip() if chosen["executable"] else "The plan can be read, not applied."
    )
    console.print(f"  [bold]Plan: {chain}, {_size(size)}, served by {engine}.[/]{tail}")
    console.print(f"  {action}")


def _count(weights: int) -> str:
    return f"{weights / 1e9:.1f} B" if weights >= 1e9 else f"{weights / 1e6:.0f} M"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 2 else f"{size / (1 << 20):.1f} MiB"


def _step(step: Mapping[str, Any]) -> str:
    by = step.get("backend", "native")
    return _made(step) + ("" if by == "native" else f" by {by}")


def _made(step: Mapping[str, Any]) -> str:
    if step["pass"] == "quantize":
        [one] = from_json([step])
        assert isinstance(one, Quantize)
        return f"quantize {one.method} {one.storage.label}"
    if step["pass"] == "prune_depth":
        return f"drop {step['count']} blocks"
    if step["pass"] == "quantize_exl2":
        return f"quantize exl2 {step['bpw']:g} bpw, head {step['head_bits']} bit"
    if step["pass"] == "quantize_mixed":
        return f"quantize {step['method']} mixed {step['bpw']:g} bpw"
    if step["pass"] == "prune_sparse":
        share = f"{step['sparsity'] * 100:g} %" if step["pattern"] == "unstructured" else step["pattern"]
        return f"{share} zeros by {step['method']}"
    if step["pass"] == "kv_cache":
        return f"KV cache {step['dtype']}" + (" with scales" if step.get("scales") else "")
    options = ", ".join(f"{key}={value}" for key, value in step.items() if key != "pass")
    return f"{step['pass']} {options}".strip()


def _graph(chosen: Mapping[str, Any]) -> str:
    return " ─► ".join(["source", *(_step(step) for step in chosen["passes"]), "checkpoint", chosen["engine"]["name"]])


def _print_memory(console: Console, chosen: Mapping[str, Any], context: int) -> None:
    memory = chosen["memory"]
    budget, total = memory["budget"]["value"], memory["total"]["value"]
    share = min(1.0, total / budget) if budget else 1.0
    full = round(share * _BAR)
    bar = Text("█" * full + "░" * (_BAR - full), style="green" if total <= budget else "red")
    console.print(Text("  Memory   ") + bar + Text(f"  {_size(total)} of {_size(budget)}"))
    kv = chosen["kv_cache"]
    parts = [f"weights {_size(memory['weights']['value'])}", f"KV cache {_size(memory['kv_cache']['value'])}"]
    parts += [f"activations {_size(memory['activations']['value'])}"] if memory["activations"]["value"] else []
    overhead = memory["non_torch"]["value"] + memory["cuda_graphs"]["value"]
    parts += [f"overhead {_size(overhead)}"] if overhead else []
    requests = kv["max_concurrency"]["value"]
    shown = (
        "no cache"
        if requests is None
        else f"{kv['tokens']['value']:,.0f} KV tokens, {requests:.1f} requests of {context:,} tokens at once"
    )
    console.print(f"           {'   '.join(parts)}")
    console.print(f"           {shown}; longest context {kv['max_context']:,}")
    console.print()


def _print_goals(console: Console, chosen: Mapping[str, Any]) -> None:
    from planner.quality.expected import perplexity_growth
    from planner.verdict import apart, show_interval

    rows: list[tuple[str, ...]] = []
    for goal in chosen["goals"]:
        p, unit = Quantity.of_json(goal["predicted"]), goal["unit"]
        wanted, value = apart(goal["wanted"], p.value, unit)
        sign = "≤" if goal["at_most"] else "≥"
        tick = "[green]✓[/]" if goal["met"] else "[red]✗[/]"
        far = p.high if goal["at_most"] else p.low
        if goal["met"] and (far > goal["wanted"] if goal["at_most"] else far < goal["wanted"]):
            tick += " [dim]probably[/]"
        rows.append((goal["name"], f"{sign} {wanted}", show_interval(p, unit, value), p.basis, tick))
    named = {goal["name"] for goal in chosen["goals"]}
    decode = Quantity.of_json(chosen["speed"]["decode_tok_s_per_request"])
    growth = perplexity_growth(Quantity.of_json(chosen["quality"]["log_ppl_increase"]))
    if not named & {Goal.DECODE, Goal.TPOT, Goal.THROUGHPUT}:
        rows.append((Goal.DECODE, "", show_interval(decode, Goal.DECODE.unit), decode.basis, ""))
    if not named & {Goal.PERPLEXITY, Goal.KL}:
        rows.append((Goal.PERPLEXITY, "", show_interval(growth, Goal.PERPLEXITY.unit), growth.basis, ""))
    for number, (name, wanted, predicted, basis, tick) in enumerate(rows):
        head = "  Goals    " if number == 0 else "           "
        console.print(f"{head}{name:14s} {wanted:14s} {predicted:38s} {basis:11s} {tick}")
    console.print()


def _print_rejected(console: Console, rejected: Sequence[Mapping[str, Any]]) -> None:
    for verdict in rejected:
        texts = [r["message"] + (f" ({r['remedy']})" if r.get("remedy") else "") for r in verdict["reasons"][:2]]
        console.print(f"           {verdict['candidate']}")
        console.print(f"             {'; '.join(texts)}", style="dim")


def _print_illegal(console: Console, illegal: list[Mapping[str, Any]]) -> None:
    for number, reason in enumerate(illegal[:4]):
        remedy = f" ({reason['remedy']})" if reason.get("remedy") else ""
        head = "  Illegal  " if number == 0 else "           "
        console.print(f"{head}{reason['message']}{remedy}: {reason['candidates']} candidates")
    if illegal:
        console.print()


def print_diff(console: Console, document: Mapping[str, Any]) -> None:
    """What differs between two plans."""
    for part in ("inputs", "choices"):
        console.print(f"  [bold]{part}[/]" + ("" if document[part] else ": the same"))
        for change in document[part]:
            console.print(f"    {_change(**change)}", markup=False)


def _change(what: str, old: Any, new: Any) -> str:
    from planner.quality.expected import growth
    from planner.verdict import apart, show

    if what != "log_ppl_increase":
        return f"{what}: {old} → {new}"
    if old is None or new is None:
        before, after = (str(value) if value is None else show(growth(value), "%") for value in (old, new))
    else:
        before, after = apart(growth(old), growth(new), "%")
    return f"perplexity: {before} → {after}"


def print_check(console: Console, document: Mapping[str, Any]) -> None:
    """The answer of `check`."""
    verdict = "[bold green]fits[/]" if document["fits"] else "[bold red]does not fit[/]"
    console.print(
        f"  {document['model']} on {document['gpu']} with {document['engine']}: {verdict} (confidence {document['confidence']:.0%})"
    )
    memory, kv = document["memory"], document["kv_cache"]
    terms = ("weights", "activations", "non_torch", "cuda_graphs")
    left = memory["kv_cache"]["value"]
    cache = f"{_size(left)} left for the KV cache" if left >= 0 else f"{_size(-left)} too much before any KV cache"
    parts = [f"{term.replace('_', ' ')} {_size(memory[term]['value'])}" for term in terms if memory[term]["value"]]
    console.print(f"  {'   '.join(parts)}   of {_size(memory['budget']['value'])}: {cache}")
    requests = kv["max_concurrency"]["value"]
    if requests is not None and left >= 0:
        console.print(
            f"  {kv['tokens']['value']:,.0f} KV tokens, {requests:.1f} requests at once, longest context {kv['max_context']:,}"
        )
    speed = document["speed"]
    if speed:
        decode = speed["decode_tok_s_per_request"]
        console.print(
            f"  TTFT {speed['ttft_ms']['value']:.0f} ms   decode {decode['value']:.1f} tok/s ({decode['basis']})"
        )
    for reason in document["reasons"]:
        console.print(f"  [red]✗[/] {reason['message']}" + (f" → {reason['remedy']}" if reason.get("remedy") else ""))
    for remedy in document["remedies"]:
        console.print(f"    what would do: {remedy['message']}")
    for note in document["notes"]:
        console.print(f"  note: {note}", style="dim")


def print_certificate(console: Console, document: Mapping[str, Any]) -> None:
    """A finished result: what was promised and what was measured."""
    from planner.verdict import apart

    console.print(f"  [bold]{document['model']}[/] → {document['label']}")
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("", "predicted", "measured", ""):
        table.add_column(title)
    for row in document["checks"]:
        tick = "[green]✓[/]" if row["holds"] else "[red]✗[/]"
        table.add_row("  " + row["name"], row["predicted"], row["measured"], tick)
    for goal in document["goals"]:
        unit = Goal(goal["name"]).unit
        tick = "[green]✓[/]" if goal["met"] else "[red]✗[/]"
        wanted, measured = apart(goal["wanted"], goal["measured"], unit)
        table.add_row(f"  goal: {goal['name']}", f"≤ {wanted}", measured, tick)
    console.print(table)
    for step in document["steps"]:
        reused = " (kept from an earlier run)" if step["reused"] else ""
        seconds = f"{step['seconds']:8.1f} s" + (
            f" of {step['expected_seconds']:.0f}" if step["expected_seconds"] else ""
        )
        console.print(f"  {step['name']:20s}{seconds:18s} peak {_size(step['peak_bytes'])}{reused}", style="dim")


def print_verified(console: Console, document: Mapping[str, Any]) -> None:
    """What the running engine showed."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("", "predicted", "measured", ""):
        table.add_column(title)
    for row in document["checks"]:
        table.add_row(
            "  " + row["name"], row["predicted"], row["measured"], "[green]✓[/]" if row["holds"] else "[red]✗[/]"
        )
    console.print(table)
    verdict = "[bold green]Verified[/]" if document["holds"] else "[bold red]A promise is not kept[/]"
    console.print(f"  {verdict}; started in {document['start_seconds']:.0f} s")

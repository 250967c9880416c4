"""How many users a plan serves within its goals, and which rate of requests; what breaks first beyond, and which plan serves more."""

from __future__ import annotations

from collections.abc import Iterator

from passes.errors import InputError
from planner.choice.capacity import running_at_once
from planner.choice.demand import limits_of
from planner.choice.goals import Goal
from planner.choice.judging.highest_load import highest_rate_of, most_clients_of, with_clients
from planner.choice.judging.simulated import under
from planner.choice.verdict import Verdict
from planner.explain.asked import Answer, Asked, Row
from planner.explain.compare import Judged, differences, side
from planner.figures import apart, show
from planner.spec.patch import patched, written
from planner.spec.spec import Spec
from targets.engines.engine import MOST_CLIENTS


def how_many(asked: Asked) -> Answer:
    """Say how many clients, and requests a second, the plan serves within the goals; both loads side by side."""
    now, gpu = asked.leading, asked.result.gpu
    bounded = bool(limits_of(asked.spec.goals))
    most = most_clients_of(asked.spec, gpu, now.verdict) if bounded else MOST_CLIENTS
    fit = max(1, running_at_once(now.verdict.memory)) * now.verdict.candidate.settings.parallel.dp
    waits = most >= MOST_CLIENTS
    clients = min(fit, MOST_CLIENTS) if waits else most
    then = _under(asked, max(clients, 1))
    in_turn = then.verdict.shown and then.verdict.shown.requests_s
    rate = highest_rate_of(asked.spec, gpu, now.verdict, in_turn.value if in_turn else 1.0)
    head = f"{now.label}: {_said(asked.spec, None if waits else clients, rate, fit)}"
    breaks = "more of them wait, which no goal bounds" if waits else _first_broken(asked, clients + 1)
    role = "1 client" if clients <= 1 else f"{clients:,} clients"
    changed = written({"workload": {"concurrency": clients}}) if clients else ""
    others = tuple(_with_more(asked, clients))
    return Answer(head, others, side(now, "now"), side(then, role), differences(now, then), breaks, changed)


def _first_broken(asked: Asked, clients: int) -> str:
    beyond = _under(asked, clients)
    quality = {Goal.PERPLEXITY.reason_code, Goal.KL.reason_code}
    reasons = "; ".join(reason.message for reason in beyond.missed if reason.code not in quality)
    name, odds = beyond.least_of_load
    goals = asked.spec.goals
    least = goals.fit_confidence if name == "fit" else goals.confidence
    short = "{} is kept with {} only, {} are asked".format(name, *apart(odds, least, "odds"))
    load = "1 client" if clients == 1 else f"{clients:,} clients"
    return f"with {load}: {reasons or short}"


def _said(spec: Spec, clients: int | None, rate: float, fit: int) -> str:
    odds = f"with the odds asked for ({show(spec.goals.confidence, 'odds')})"
    if clients == 0:
        return f"not even one client is served within the goals on a request {odds}"
    if not limits_of(spec.goals):
        return (
            f"no goal is on a request's own speed, so none bounds how many are served: {fit:,} run at once in the cache, the others wait; "
            f"requests that arrive are answered as fast as they come up to {rate:.3g} a second (goals: {{ttft: 2 s}} says how many are "
            "served well)"
        )
    arriving = f"of requests that arrive, {rate:.3g} a second"
    if clients is None:
        return f"no goal bounds how long a client waits: {fit:,} run at once in the cache, the others wait; within the goals, {arriving}"
    at_once = "1 client at once is" if clients == 1 else f"{clients:,} clients at once are"
    waiting = f" ({fit:,} at work, the others wait)" if clients > fit else ""
    return f"{at_once} served within the goals on a request{waiting}, {arriving}, {odds}"


def _under(asked: Asked, clients: int) -> Judged:
    """The plan's own candidate, its load simulated, with so many clients in place of the spec's load."""
    spec = with_clients(asked.spec, clients)
    return Judged.of(spec, asked.source.ir, asked.result, under(spec, asked.result.gpu, asked.leading.verdict))


def _with_more(asked: Asked, clients: int) -> Iterator[Row]:
    """The plan that serves most, where it serves more."""
    spec = patched(with_clients(asked.spec, "auto"), {"goals": {"prefer": "throughput"}})
    try:
        other: Verdict | None = asked.changed(spec).result.chosen
    except InputError:
        return
    if other is None or other.shown is None or other.capacity.clients <= 1.05 * clients:
        return
    rate = show(other.shown.throughput_tok_s.value, "tok/s")
    told = f"serves {other.capacity.clients:,} clients within the goals, {rate} in all"
    yield Row(other.candidate.label, f"{told} (workload: {{concurrency: auto}}, goals: {{prefer: throughput}})")

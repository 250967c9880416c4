"""What can be moved of a spec: card, context, clients, KV cache, goal on quality; where each stands, and what a move changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from passes.errors import InputError
from passes.record import dataclass
from planner.spec.patch import Patch, at, together
from planner.spec.spec import Spec
from planner.spec.units import format_share
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import all_gpus

#: Of each control the option that is chosen; one that is left out stands where the spec has it.
State = Mapping[str, str]

_CONTEXTS = tuple(1024 << power for power in range(11))
_CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LOSSES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
#: Of no more options than these each is one move away.
_FEW = 16
#: The option of a control that puts nothing on it.
FREE = "any"


@dataclass(frozen=True, slots=True)
class Control:
    """A control by the name that a link gives it. `options`: values with what is read of them, in their order; `own`: the spec's.
    `slides`: whether they are steps of one quantity.
    """

    name: str
    said: str
    options: tuple[tuple[str, str], ...]
    own: str
    slides: bool

    @property
    def values(self) -> tuple[str, ...]:
        """Return the values of its options."""
        return tuple(value for value, _ in self.options)


def controls(spec: Spec) -> tuple[Control, ...]:
    """Return the controls of a spec. One whose load arrives by itself has none of clients."""
    return tuple(_controls(spec))


def _controls(spec: Spec) -> Iterator[Control]:
    load, longest = spec.workload, spec.workload.input.longest + spec.workload.output.longest
    gpu = spec.target.gpu
    own = gpu if isinstance(gpu, str) else gpu.name
    cards = sorted((card for card in all_gpus() if card.vendor == "NVIDIA"), key=lambda card: card.memory_bytes.value)
    named = {card.name: f"{card.name}, {card.memory_bytes.value / (1 << 30):.0f} GiB" for card in cards}
    yield Control("gpu", "Card", tuple({own: f"{own} (the spec's)", **named}.items()), own, slides=False)
    yield _steps("context", "Context", [n for n in _CONTEXTS if n >= longest], load.context, "{:,} tokens")
    if isinstance(load.concurrency, int):
        yield _steps("clients", "Clients at once", list(_CLIENTS), load.concurrency, "{:,}")
    cache = spec.passes.kv_cache
    known = (dtype for name in ENGINE_NAMES for dtype in find_engine(name).kv_dtypes)
    caches = dict.fromkeys((FREE, *((",".join(cache),) if cache else ()), *known))
    yield Control(
        "kv", "KV cache", tuple((each, each) for each in caches), ",".join(cache) if cache else FREE, slides=False
    )
    loss = spec.goals.quality.max_perplexity_increase
    losses = sorted({*_LOSSES, *(() if loss is None else (loss,))})
    options = ((format_share(each), f"perplexity at most +{format_share(each)}") for each in losses)
    yield Control(
        "loss", "Quality", (*options, (FREE, "any")), FREE if loss is None else format_share(loss), slides=True
    )


def _steps(name: str, said: str, steps: list[int], own: int, form: str) -> Control:
    options = tuple((str(step), form.format(step)) for step in sorted({*steps, own}))
    return Control(name, said, options, str(own), slides=True)


def state_of(asked: Mapping[str, str], known: tuple[Control, ...]) -> State:
    """Return where the controls stand that a link moves. Raises InputError for one, or an option, that there is not."""
    by_name = {control.name: control for control in known}
    for name, value in asked.items():
        control = by_name.get(name)
        if control is None:
            raise InputError(f"nothing here is called {name!r:.60}", remedy=f"controls: {', '.join(by_name)}")
        if value not in control.values:
            raise InputError(
                f"{control.said} cannot be {value!r:.60}", remedy=f"one of {', '.join(control.values[:20])}"
            )
    return {name: value for name, value in asked.items() if value != by_name[name].own}


def changes(state: State) -> Patch:
    """Return the patch of the spec that the moved controls stand for."""
    patch: Patch = {}
    for name, value in state.items():
        patch = together(patch, _PATCHES[name](value))
    return patch


_PATCHES = {
    "gpu": lambda value: at(("target", "gpu"), value), "context": lambda value: at(("workload", "context"), int(value)),
    "clients": lambda value: at(("workload", "concurrency"), int(value)),
    "kv": lambda value: at(("passes", "kv_cache"), None if value == FREE else value.split(",")),
    "loss": lambda value: at(("goals", "quality", "max_perplexity_increase"), None if value == FREE else value),
}  # fmt: skip


def neighbours(state: State, known: tuple[Control, ...]) -> Iterator[State]:
    """Give where one move of one control leads: a step either way, first those of what slides; any option of those with few."""
    for control in sorted(known, key=lambda control: not control.slides):
        values, here = control.values, state.get(control.name, control.own)
        place = values.index(here)
        near = (place + 1, place - 1) if control.slides or len(values) > _FEW else range(len(values))
        for step in near:
            if 0 <= step < len(values) and step != place:
                moved = {**state, control.name: values[step]}
                yield {name: value for name, value in moved.items() if (name, value) != (control.name, control.own)}

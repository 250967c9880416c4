"""What a command that starts an engine's server asks for, as people paste it."""

from __future__ import annotations

from passes.errors import Reason
from passes.ir.sources import Source
from passes.record import dataclass
from targets.engines.engine import Settings


@dataclass(frozen=True, slots=True)
class Pasted:
    """The model of a command, and what it is asked with. None: the command does not say. `whole`: it starts the server, and is not its
    flags alone. `cards`: those of its container. `longest`: the longest context that fits is taken. `notes`: what is not counted.
    """

    model: str
    source: Source
    settings: Settings
    whole: bool
    cards: int | None = None
    context: int | None = None
    longest: bool = False
    weights: str | None = None
    kv_cache_dtype: str | None = None
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()

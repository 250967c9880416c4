"""Answers ahead: processes that plan what is asked, then what a next move may ask, so that most moves find their answer there."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from functools import lru_cache
from threading import Lock

from passes.errors import TightfitError
from passes.ir.sources import Source
from planner.explain.asked import Asked
from planner.report.page import render
from planner.spec.spec import Spec
from planner.whatif.answer import answer, others, searched
from planner.whatif.controls import Control, State, neighbours

#: Processes at most; each holds a description of the model and what was computed of it.
_MOST = 4
#: By how much those that plan ahead are nicer than what is asked.
_YIELDS = 10
#: Answers that are kept, the oldest let go first.
_KEPT = 512
#: Searches that a process keeps for what is asked of them next.
_REMEMBERED = 4
#: A part of the page at a setting, as what is known of it is found.
Key = tuple[str, frozenset[tuple[str, str]]]
#: The parts: what is chosen with its figures, which is waited for; what came nearest to it, which takes simulations of its own.
PLAN, OTHERS = "plan", "others"


class Ahead:
    """Parts of the page by settings of the controls, each computed once."""

    def __init__(self, spec: Spec, source: Source, controls: tuple[Control, ...]) -> None:
        self._subject, self._controls = (spec, source), controls
        self._begin_processes()
        self._answers: dict[Key, Future[str]] = {}
        self._waited: Counter[Key] = Counter()
        self._lock = Lock()

    def ask(self, state: State, part: str = PLAN) -> str:
        """Return a part of the page at a setting as HTML. Forecasts that nobody waits for and no process has begun make way for it."""
        key = part, frozenset(state.items())
        with self._lock:
            for other in [
                each for each, forecast in self._answers.items() if not self._waited[each] and forecast.cancel()
            ]:
                del self._answers[other]
            self._waited[key] += 1
            under_way = self._answers.get(key)
            if under_way is None or not (under_way.done() or self._waited[key] > 1):
                # a forecast that has not ended may not have begun: what a pool has taken on cannot be cancelled
                self._answers[key] = self._asked.submit(_answered, dict(state), part)
            either = tuple(each for each in (under_way, self._answers[key]) if each is not None)
        try:
            html = next(iter(wait(either, return_when=FIRST_COMPLETED).done)).result()
        except BrokenExecutor as error:
            with self._lock:
                self._answers.clear()
                self._begin_processes()
            raise TightfitError("a process that plans was ended from outside", remedy="ask once more") from error
        except Exception:
            with self._lock:
                self._answers.pop(key, None)  # a failure is not kept
            raise
        finally:
            with self._lock:
                self._waited[key] -= 1
        with self._lock:
            for near in neighbours(state, self._controls):
                self._forecast(near)
        return html

    def _begin_processes(self) -> None:
        """One process plans what is asked, so that it never waits behind a forecast; the others plan ahead, and yield to it."""
        others = max(1, min(_MOST, os.cpu_count() or 1) - 1)
        self._asked, self._ahead = (
            ProcessPoolExecutor(count, initializer=_begin, initargs=(*self._subject, yields))
            for count, yields in ((1, 0), (others, _YIELDS))
        )

    def close(self) -> None:
        """End the processes."""
        for pool in (self._asked, self._ahead):
            pool.shutdown(wait=False, cancel_futures=True)

    def _forecast(self, state: State) -> None:
        """Plan a setting ahead, unless that is done, and let the oldest answers go."""
        key = PLAN, frozenset(state.items())
        if key not in self._answers:
            for old in list(self._answers)[: max(0, len(self._answers) - _KEPT)]:
                if self._answers[old].done() and not self._waited[old]:
                    del self._answers[old]
            self._answers[key] = self._ahead.submit(_answered, dict(state), PLAN)


#: What a process plans for.
_SUBJECT: list[tuple[Spec, Source]] = []


def _begin(spec: Spec, source: Source, yields: int) -> None:
    import gc
    import signal

    os.nice(yields)
    gc.freeze()  # what was loaded stays; what plans leave behind is collected, which the command line does without
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which ends these
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # without the words of a command
    _SUBJECT[:] = [(spec, source)]
    _search.cache_clear()


def _answered(state: State, part: str) -> str:
    found = _search(frozenset(state.items()))
    return (
        render("plan.html.j2", answer=answer(found, state))
        if part == PLAN
        else render("others.html.j2", others=others(found))
    )


@lru_cache(maxsize=_REMEMBERED)
def _search(state: frozenset[tuple[str, str]]) -> Asked | TightfitError:
    spec, source = _SUBJECT[0]
    return searched(spec, source, dict(state))

"""Answers to a person's questions about a plan. A question of what would be is a patch of the spec: it is planned, and both are compared.

Every answer names two plans, the chosen one and the other, with the figures of both and what decides between them. Where nothing meets
the goals, the nearest candidate stands for the chosen one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

from passes.errors import InputError, nearest
from passes.ir.sources import Source
from planner.choice.verdict import Verdict
from planner.explain.asked import Answer, Asked
from planner.explain.changes import NotKnownError, bare, change, known_words, named
from planner.explain.compare import decides
from planner.explain.least import cheapest_card, fewest_bits
from planner.explain.naming import has, may_have, weights_have, words_of
from planner.explain.tasks import TASKS, at_tasks, good_at
from planner.explain.two_plans import chosen_words, compared, lost_row, replanned, what_if
from planner.explain.users import how_many
from planner.explain.wording import plain, preferences_of, two_of
from planner.figures import show_interval
from planner.quality.expected import perplexity_growth
from planner.spec.patch import Patch, at, patched, written
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES, find_engine

#: What may be asked, an example of each kind.
QUESTIONS = (
    "why", "how many users", "highest rate", "why exllamav2", "why vllm", "why g64", "why not awq", "why not w8a8", "what if 1 card",
    "what if 2 cards", "what if 2 x 4090", "what if vllm", "what if concurrency 4", "what if 3 requests a second", "what if context 64k",
    "what if prefer speed", "what if no prune", "what if goal 2 %", "cheapest card that fits", "fewest bits at 2 %",
)  # fmt: skip

#: Answers a question of one form about a plan, given the words that stand in its place.
_Answering: TypeAlias = Callable[[Asked, str], Answer]


def explain(spec: Spec, source: Source, question: str | None = None) -> Answer:
    """Answer a question about the plan of a spec; without one, every candidate with its reasons.

    Raises InputError for a question of no known form, or one that names nothing that is known: it lists what may be asked.
    """
    text = plain(question or "")
    asked = Asked(spec, source)
    if not text:
        return _all(asked)
    try:
        return _answered(asked, text)
    except NotKnownError as error:
        close = nearest(text, QUESTIONS) if "Did you mean" not in error.message else ()
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise InputError(
            f"cannot answer {question!r}: {error.message}{hint}",
            remedy=f"ask for instance: {'; '.join(QUESTIONS)}; `optimize schema` prints what of a spec can be asked about",
        ) from None


def _answered(asked: Asked, text: str) -> Answer:
    """The answer of the first form that the words have; else they are a change."""
    if (two := two_of(text)) and (answer := _versus(asked, *two)) is not None:
        return answer
    for pattern, answering in _FORMS:
        if match := re.fullmatch(pattern, text, re.IGNORECASE):
            return answering(asked, (match[match.lastindex or 0] or "").strip())
    return what_if(asked, text)


def _versus(asked: Asked, this: str, that: str) -> Answer | None:
    """The best with one thing against the best with another; None where neither is of any candidate."""
    if re.fullmatch(f"{_IT}|this", this, re.IGNORECASE):
        return _why_not(asked, that)
    if (preferred := preferences_of(this, that)) is not None:
        return _preferring(asked, *preferred)
    first, second = (
        [v for v in asked.verdicts if has(v, name)] if may_have(asked, name) else [] for name in (this, that)
    )
    if not first or not second:
        return _why_not(asked, that) if first else _why_not(asked, this) if second else None
    leading = asked.result.chosen
    for mine, theirs in ((first, that), (second, this)):
        if leading is not None and leading in mine:
            return _why_not(asked, theirs)
    best, other = asked.best(first), asked.best([v for v in second if v not in first] or second)
    assert best is not None and other is not None
    head = f"the best with {this}: {best.label}; the best with {that}: {other.label}"
    return compared(head, best, other, (), ("first", "second"))


def _preferring(asked: Asked, this: str, that: str) -> Answer:
    """The plan that prefers one thing against the plan that prefers another."""
    first, second = (asked.changed(patched(asked.spec, at(("goals", "prefer"), name))).leading for name in (this, that))
    same = "the same plan" if first.label == second.label else second.label
    head = f"preferring {this}: {first.label}; preferring {that}: {same}"
    return compared(head, first, second, (), (this, that))


def _all(asked: Asked) -> Answer:
    """Every design that lost, nearest first."""
    lost = sorted((asked.judged(v).verdict for v in asked.result.rejected), key=lambda v: v.distance)
    chosen = asked.result.chosen.candidate.label if asked.result.chosen else "nothing"
    others = f"the {len(lost):,} designs that lost, nearest first, each with its best settings"
    head = f"{chosen} was chosen out of {asked.result.searched:,} candidates; {others}"
    return Answer(head, tuple(map(lost_row, lost)))


def _chosen_one(asked: Asked, words: str) -> Answer:
    """The chosen plan against the next best: its figures, and what decided."""
    leading = asked.leading
    others = [v for v in asked.verdicts if v.candidate != leading.verdict.candidate]
    other = asked.best(others)
    if other is None:
        return Answer(f"{leading.label} is the only candidate that there is")
    why = f": {asked.result.why}" if asked.result.why else ""
    return compared(f"{chosen_words(asked, leading)}{why}; the next best: {other.label}", leading, other, others)


def _how_fast(asked: Asked, words: str) -> Answer:
    """The figures of the chosen plan with their intervals; it beside the next best."""
    leading = asked.leading.as_served
    speed, verdict = leading.verdict.shown, leading.verdict
    told = [f"memory {show_interval(verdict.memory.memory.total, 'B')}"]
    if speed is not None:
        figures = (
            *((("decode", speed.decode_tok_s_per_request, "tok/s"),) if leading.decodes else ()),
            ("all clients", speed.throughput_tok_s, leading.rate_unit), ("time to the first token", speed.ttft_ms, "ms"),
        )  # fmt: skip
        told = [*(f"{name} {show_interval(figure, unit)}" for name, figure, unit in figures), *told]
    grown = show_interval(perplexity_growth(verdict.quality.log_ppl_increase), "%")
    return replace(_chosen_one(asked, words), answer=f"{leading.label}: {'; '.join((*told, f'perplexity {grown}'))}")


def _longest(asked: Asked, words: str) -> Answer:
    """The longest request that the plan's cache holds, and how many tokens of all together."""
    leading = asked.leading
    kv = leading.verdict.memory.kv
    told = f"a request of {kv.max_context:,} tokens fits, {kv.tokens.value:,.0f} ({kv.tokens.low:,.0f} … {kv.tokens.high:,.0f}) of all"
    return replace(_chosen_one(asked, words), answer=f"{leading.label}: {told}")


#: What stands before a condition in a question, and what stands there without being one.
_CONDITION = re.compile(r"(?:^|.*? )(?:with|for|at|on|if|when|using|under) (?P<said>.+)", re.IGNORECASE)
_NO_CONDITION = re.compile(
    r"(?:(?:this|that|the|it|its|me|us|now|all|my|our|these|model|plan|spec|goals?|load|use) ?)+", re.IGNORECASE
)


def _condition(words: str) -> str | None:
    """What a question is asked under besides the plan's spec (`cheapest card for 8 users`), in the words of a change."""
    found = _CONDITION.fullmatch(words)
    return None if found is None or _NO_CONDITION.fullmatch(found["said"]) else found["said"]


def _conditional(answer: _Answering) -> _Answering:
    """Answer about the plan of the changed spec where the words behind a question say what else is so."""

    def answered(asked: Asked, words: str) -> Answer:
        condition = _condition(words)
        if condition is None:
            return answer(asked, words)
        spec, patch = _changed(asked, condition)
        told = answer(asked.changed(spec), words)
        return replace(
            told, answer=f"with {condition}: {told.answer}", patch=", ".join(filter(None, (written(patch), told.patch)))
        )

    return answered


def _changed(asked: Asked, condition: str) -> tuple[Spec, Patch]:
    """The spec as a condition has it. Raises NotKnownError, with what a plan tells, for what no spec says."""
    try:
        return change(condition, asked.spec, asked.engine)
    except NotKnownError as error:
        told = "a plan tells memory, speed, cost, and the perplexity that is lost"
        raise NotKnownError(f"{condition!r} is nothing that a spec says; {told}", remedy=error.remedy) from None


def _changed_or(answer: _Answering) -> _Answering:
    """Hold the plan against that of the changed spec where the words behind a question say what else is so."""

    def answered(asked: Asked, words: str) -> Answer:
        condition = _condition(words)
        if condition is None:
            return answer(asked, words)
        spec, patch = _changed(asked, condition)
        return replanned(asked, f"with {bare(condition)}", asked.changed(spec), patch)

    return answered


def _why_cards(asked: Asked, count: str) -> Answer:
    """The chosen plan against the nearest one on fewer cards; on another number than the plan's, what it would be there."""
    cards = asked.leading.verdict.candidate.cards
    if int(count) != cards or cards == 1:
        return what_if(asked, "1 card" if int(count) == 1 else f"{count} cards")
    fewer = asked.result.with_fewer_cards()
    if fewer is None:
        return what_if(asked, f"{cards // 2} cards")
    other = asked.judged(fewer)
    taken = "1 card" if fewer.candidate.cards == 1 else f"{fewer.candidate.cards} cards"
    return compared(
        f"{chosen_words(asked, asked.leading)}; the nearest on {taken}: {other.label}", asked.leading, other, ()
    )


def _why(asked: Asked, name: str) -> Answer:
    """The chosen plan against the best without what is named; where it has nothing of the name, against the best that has."""
    if not may_have(asked, name):
        return _planned_for(asked, name)
    leading = asked.leading
    if not has(leading.verdict, name):
        return _why_not(asked, name)
    without = [v for v in asked.verdicts if not has(v, name)]
    if not without and (opened := _opened(asked, name)) is not None:
        return opened
    without = without or list(_of_other_engines(asked, name))
    other = asked.best(without) or asked.best([v for v in asked.verdicts if v is not asked.result.chosen])
    if other is None:
        return Answer(f"{leading.label} is the only candidate that there is")
    head = f"{chosen_words(asked, leading)}; the best without {name}: {other.label}"
    return compared(head, leading, other, without)


#: What a spec may name, which leaves the rest out, as it stands where nothing is named.
_OPEN: tuple[Patch, ...] = (
    at(("passes", "quantize"), {"formats": None, "methods": None, "dense": None}), at(("passes", "quantize"), "allow"),
    at(("passes", "kv_cache"), None), at(("engine",), "auto"),
)  # fmt: skip


def _opened(asked: Asked, name: str) -> Answer | None:
    """The chosen plan against the best without what is named, where every candidate of the spec has it because it asks for no other."""
    leading = asked.leading
    for patch in _OPEN:
        try:
            found = asked.changed(patched(asked.spec, patch))
            without = [v for v in found.verdicts if not has(v, name)]
        except InputError:
            continue
        if without:
            other = found.best(without)
            assert other is not None
            head = f"{chosen_words(asked, leading)}; the spec allows nothing without {name}; the best, were that open: {other.label}"
            told = compared(head, leading, other, ())
            return replace(told, decides=f"the spec asks for {name}; the other {told.decides}", patch=written(patch))
    return None


def _why_not(asked: Asked, name: str) -> Answer:
    """The chosen plan against the best with what is named; planned for it alone where it was not weighed."""
    if not may_have(asked, name):
        return _planned_for(asked, name)
    leading = asked.leading
    found = [v for v in asked.verdicts if weights_have(v, name)]
    if not found or leading.verdict in found:
        found = [v for v in asked.verdicts if has(v, name)]
        if asked.result.chosen is not None and has(asked.result.chosen, name):
            return _why(asked, name)
    if not found:
        return _planned_for(asked, name)
    other = asked.best([v for v in found if v.candidate != leading.verdict.candidate] or found)
    assert other is not None
    return compared(f"{chosen_words(asked, leading)}; the best with {name}: {other.label}", leading, other, found)


def _planned_for(asked: Asked, name: str) -> Answer:
    """The same for what was not weighed: the spec with nothing else, planned."""
    for patch in named(name):
        try:
            return _unasked(asked, name, patch)
        except InputError as error:
            refused = error
    if any(True for _ in named(name)):
        raise InputError(f"{name!r} cannot be planned: {refused.message}", remedy=refused.remedy)
    try:
        return what_if(asked, name)
    except InputError:
        close = nearest(name, (*known_words(), *words_of(asked)))
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise NotKnownError(
            f"no candidate is called {name!r}.{hint}",
            remedy=f"`optimize explain` without a question lists all of them; ask for instance: {'; '.join(QUESTIONS)}",
        ) from None


def _unasked(asked: Asked, name: str, patch: Patch) -> Answer:
    """What is not weighed, planned for by itself, then held against the chosen one under the goals that both have."""
    after = asked.changed(patched(asked.spec, patch))
    answer = replanned(asked, f"{name} was not weighed; with it alone", after, patch)
    if after.spec.target != asked.spec.target or after.spec.goals != asked.spec.goals:
        return answer
    return replace(answer, decides=decides(asked.leading, after.leading))


_A_CHEAPER = "(?:we had |i had |on |with )?(?:an? |the )?(?:cheaper|cheapest|smaller|smallest|lesser|least)"
_IT = "(?:it|this|that|we|i|they|the plan|the model)"
_BETTER = "(?:better|worse|faster|slower|smaller|larger|bigger|cheaper|fast|slow|small|large|big|cheap|enough|possible|good|ok)"

_WELL = "(?:good|well|accurate|smart|capable|reliable|suitable|usable)"

_FORMS: tuple[tuple[str, _Answering], ...] = (
    (rf"(?:what )?(?:if|about) {_A_CHEAPER} (?:card|gpu)", cheapest_card),
    (
        r"(?:is there |are there |can (?:i|we) use |give me |find (?:me )?|show me )?"
        r"(?:an?y? |the )?(?:cheaper|smaller|lesser) (?:card|gpu)s?( .*)?",
        _conditional(cheapest_card),
    ),
    (r"why not (?:an? |the )?(?:use |using )?(?:published )?(.+)", _why_not),
    (r"why(?: (?:this|that|it|this plan|the plan|is it chosen|was it chosen))?", _chosen_one),
    (r"why (\d+) (?:cards?|gpus?)", _why_cards),
    (rf"why (?:(?:is|was) (?:the |{_IT} )?|did (?:you|it) (?:choose|pick|take|use) |does {_IT} (?:use|take) |use )?(.+)", _why),
    (rf"how {_WELL} (?:is|are|will|does|would) (?:{_IT} )?(?:be |do |work )?(?:for|at|in|on|with) (.+)", good_at),
    (rf"(?:is|are|will|would) {_IT} (?:be )?(?:any )?{_WELL} (?:for|at|in|on) (.+)", good_at),
    (rf"(?:what (?:is|are) (?:its|the) |how (?:is|are) (?:its|the) |how (?:does|will|would) {_IT} (?:do|perform|work) (?:on|at|in|with) "
     rf"|(?:can|will|does|would) {_IT} )({TASKS}(?: .+)?)", at_tasks),
    (rf"(?:can|could|will|would|does|is) {_IT} (?:fit|run|work|go)(?: (?:on|in|at|with))? (.+)", what_if),
    (rf"(?:can|could|will|would|does) {_IT} (?:serve|handle|hold|take|do|use) (.+)", what_if),
    (r"(?:what |and |how )?(?:if|about) (.+)", what_if),
    (r"(?:what happens|is it possible|possible) (?:with|on|if) (.+)", what_if),
    (r"what (?:would|will|could|does|do) (.+?) (?:give|do|cost|change|bring|take|mean)(?: us| me)?", what_if),
    (rf"(?:is|would|will) {_IT} (?:be |run )?{_BETTER} (?:with|on|in|by|at|for) (.+)", what_if),
    (rf"(?:is|are|would|will) {_IT} (?:be |run )?{_BETTER}(?: enough)?", _how_fast),
    (rf"(?:is|are|would|will) (.+?) (?:be )?(?:any )?{_BETTER}", _why_not),
    (r"(?:what (?:is|would be|could be|can be) )?(faster)", lambda asked, words: what_if(asked, "prefer speed")),
    (r"(?:what (?:is|would be|could be|can be) )?(cheaper)", lambda asked, words: cheapest_card(asked, "")),
    (
        r"(?:how many|most|max(?:imum)?) (?:users?|clients?|concurren\w+|requests?|people)( .*)?",
        _conditional(lambda asked, words: how_many(asked)),
    ),
    (
        r"(?:what is |what's )?(?:the )?(?:highest|most|max(?:imum)?|largest) (?:rate|load|concurrency|throughput)( .*)?",
        _conditional(lambda asked, words: how_many(asked)),
    ),
    (
        r"(?:what is |what's |how long is )?(?:the )?(?:longest|largest|max(?:imum)?|most) (?:context|prompts?|requests?)( .*)?",
        _conditional(_longest),
    ),
    (r"how (?:fast|much|good|well|big|large|long|slow)( .*)?", _changed_or(_how_fast)),
    (
        r"what (?:is|are) (?:its|the) (?:speed|memory|quality|loss|throughput|latency|ttft|figures|cost)( .*)?",
        _changed_or(_how_fast),
    ),
    (r"(?:the |which |what )?(?:is the )?(?:(?:cheapest|smallest|least) )?(?:card|gpu)( .*)?", _conditional(cheapest_card)),
    (r"(?:the )?fewest bits (?:at|for|with|within) (.+)", fewest_bits),
)  # fmt: skip


def _of_other_engines(asked: Asked, name: str) -> Iterator[Verdict]:
    """What other engines for this card would do, where all candidates have what is named."""
    device = find_engine(asked.leading.verdict.candidate.engine).device
    for engine in ENGINE_NAMES:
        if find_engine(engine).device == device and engine != asked.leading.verdict.candidate.engine:
            found = asked.changed(patched(asked.spec, at(("engine",), engine)))
            yield from (v for v in found.verdicts if not has(v, name))

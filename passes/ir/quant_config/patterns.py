"""Regular expressions that others wrote, taken only where matching a module's name by them ends soon.

Python's engine tries every way to split a name among repeats and alternatives. Their number is bounded here from above before a
pattern is used: what doubles with every letter (`(a+)+`, `(a|aa)+`, `.*.*.*.*`) has far more of them than what people write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from passes.errors import InputError

#: Letters of a name, and how often one letter comes in it: where a repeat may end before something fixed.
_LENGTH, _OCCURRENCES = 128, 6
#: Ways that a name may be tried at most: about a millisecond.
_MOST = 20_000
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")

#: An operator of a parsed pattern with its arguments.
Item = tuple[Any, Any]


def compiled(pattern: str) -> re.Pattern[str]:
    """Return a regular expression of a config. Raises InputError where it is none, or one whose matching may take for ever."""
    try:
        ways = _ways(list(parser.parse(pattern)))
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"quantization_config: {pattern!r:.80} should be a regular expression ({error})",
            remedy="Mend the pattern, or name the dense model.",
        ) from None
    if ways > _MOST:
        raise InputError(
            f"quantization_config: matching names by {pattern!r:.80} may take for ever: its repeats can share a name in too many ways",
            remedy="Write it without repeats of repeats or alternatives, or name the dense model.",
        )
    return expression


def _ways(items: Sequence[Item], *, last: bool = True) -> float:
    """How many ways there are at most to match a name by these, one after another. `last`: nothing stands behind them."""
    total, items = 1.0, [item for item in items if str(item[0]) != "AT"]
    for index, item in enumerate(items):
        behind = items[index + 1] if index + 1 < len(items) else None
        total = min(total * _ways_of(item, fixed=_is_letter(behind), last=last and behind is None), 2.0 * _MOST)
    return total


def _ways_of(item: Item, *, fixed: bool, last: bool) -> float:
    """Of one operator. `fixed`: a certain letter follows."""
    name, argument = str(item[0]), item[1]
    if name in _REPEATS:
        least, most, inner = int(argument[0]), min(int(argument[1]), _LENGTH), list(argument[2])
        if len(inner) == 1 and _matches_one(inner[0]):
            return 1.0 if last else min(max(1, most - least + 1), _OCCURRENCES if fixed else _LENGTH)
        # Each time round the body may be matched in all its ways, or be what ends the repeat.
        each = _ways(inner, last=False) + (1 if most > least and _varies(inner) else 0)
        return max(1.0, most - least + 1.0) * float(min(each, 2.0 * _MOST)) ** min(most, 20)
    if name == "BRANCH":
        branches = [list(branch) for branch in argument[1]]
        ways = [_ways(branch, last=last) for branch in branches]
        begin = [branch[0][1] if branch and str(branch[0][0]) == "LITERAL" else None for branch in branches]
        return max(ways) if None not in begin and len(set(begin)) == len(begin) else sum(ways)
    return max((_ways(list(inner), last=last) for inner in _inside(name, argument)), default=1.0)


def _varies(items: Sequence[Item]) -> bool:
    """Whether what these match has more than one length."""
    return any(str(name) in (*_REPEATS, "BRANCH", "SUBPATTERN") for name, _ in items)


def _is_letter(item: Item | None) -> bool:
    return item is not None and str(item[0]) == "LITERAL"


def _matches_one(item: Item) -> bool:
    return str(item[0]) in ("LITERAL", "NOT_LITERAL", "ANY", "IN")


def _inside(name: str, argument: Any) -> Iterator[Sequence[Item]]:
    """The patterns within a group or an assertion."""
    if name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
        yield argument[-1]
    elif name == "ATOMIC_GROUP":
        yield argument
    elif name == "GROUPREF_EXISTS":
        yield from (branch for branch in argument[1:] if branch is not None)

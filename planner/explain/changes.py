"""From words to a patch of the spec: `2 cards`, `2 x 4090`, `context 64k`, `no prune`, `goal 2 %`, `vllm and concurrency 4`.

A change is a key of the spec with a value, in either order; `no` and a key; cards by number and name; or the bare name of an engine,
a card, a format, a method, a type of the cache, or of what may be preferred. Keys are those of the spec's schema, by their last part
where that is enough, or by the words of `_CALLED`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from passes.errors import InputError, nearest
from passes.formats import kv_dtypes
from passes.ir.names import find
from passes.quantize.format_names import methods, pass_named
from planner.spec.meanings import meaning
from planner.spec.parts.goals import Goals
from planner.spec.patch import Patch, Path, at, patched, places, together
from planner.spec.spec import Spec
from planner.spec.units import as_typed_tokens
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import SharedNameError, all_gpus, find_gpu

#: What people call keys of the spec.
_CALLED: Mapping[str, str] = {
    "card": "target.count", "cards": "target.count", "gpus": "target.count", "gpu": "target.gpu", "machines": "target.nodes",
    "client": "workload.concurrency", "clients": "workload.concurrency", "user": "workload.concurrency", "users": "workload.concurrency",
    "input": "workload.input_tokens", "prompt": "workload.input_tokens", "prompts": "workload.input_tokens",
    "answer": "workload.output_tokens", "answers": "workload.output_tokens",
    "request rate": "workload.rate", "output": "workload.output_tokens", "speed": "goals.decode", "latency": "goals.tpot",
    "goal": "goals.quality.max_perplexity_increase", "quality": "goals.quality.max_perplexity_increase",
    "perplexity": "goals.quality.max_perplexity_increase", "loss": "goals.quality.max_perplexity_increase", "kl": "goals.quality.max_kl",
    "goals": "goals", "pruning": "passes.prune", "distillation": "passes.distill", "quantization": "passes.quantize",
    "cache": "passes.kv_cache", "kv": "passes.kv_cache", "kv cache": "passes.kv_cache",
    "kv quantization": "passes.kv_cache", "cache quantization": "passes.kv_cache", "kv cache quantization": "passes.kv_cache",
    "format": "passes.quantize.formats",
    "weights": "passes.quantize.formats", "method": "passes.quantize.methods", "backend": "passes.quantize.backend",
}  # fmt: skip
#: What people say before a change.
_LEADING = re.compile(
    r"^(?:(?:(?:i|we|you|they|it|(?:my|our|the) (?:users|clients|people)) "
    r"(?:send|sent|use[ds]?|ha[vds]e?|takes?|took|runs?|ran|serve[ds]?|want(?:ed)?|get|got|need(?:ed)?|bought|buy|add(?:ed)?)|"
    r"there (?:are|were|is|was)|this|that|it|with|an?|the|on|in|by|for|at|only|just|up to|using|another) )+",
    re.IGNORECASE,
)
#: What `no` makes of a key; of every other one it takes the value away.
_WITHOUT: Mapping[Path, Any] = {
    ("passes", "prune"): "forbid", ("passes", "distill"): "forbid", ("passes", "quantize"): "forbid", ("passes", "kv_cache"): ["auto"],
}  # fmt: skip
#: Keys that a bare name allows.
_ALLOWED: Mapping[Path, Any] = {("passes", "prune"): "allow", ("passes", "distill"): "allow"}
#: How many times what the spec has.
_TIMES: Mapping[str, float] = {
    "twice": 2, "double": 2, "doubled": 2, "2x": 2, "triple": 3, "thrice": 3, "3x": 3, "four times": 4, "ten times": 10, "10x": 10,
    "half": 0.5, "halve": 0.5, "halved": 0.5,
}  # fmt: skip
#: Words of the longest value that a key may have; more of them are a sentence that has the key in it.
_WORDS_OF_VALUE = 3
#: Units that may be left out, after those that a value has itself.
_UNITS = ("", "%", " tok/s")


class NotKnownError(InputError):
    """Words that mean nothing which is known."""


def change(text: str, spec: Spec, engine: Callable[[], str]) -> tuple[Spec, Patch]:
    """Change a spec as the words say; return it and the patch. `engine` tells the plan's own, whose settings are meant where none is named:
    it is asked only then, as it takes a search.

    Raises InputError, with the nearest words that are known, for words that change nothing.
    """
    whole: Patch = {}
    for part in re.split(r",\s+|\s+and\s+|\s*;\s*", text.strip()):
        spec, patch = _change(bare(part.strip()), spec, engine)
        whole = together(whole, patch)
    return spec, whole


def bare(text: str) -> str:
    """Return a change without what people say before it and behind it."""
    text = re.sub(r" (?:instead|per card|at once|at a time|in parallel|simultaneously)$", "", text, flags=re.IGNORECASE)
    return _LEADING.sub("", text)


def named(name: str) -> Iterator[Patch]:
    """Give what a bare name may ask for, most likely first: an engine, formats or a method, a type of the cache, a card, a preference."""
    word = name.strip().lower()
    if word in ENGINE_NAMES:
        yield at(("engine",), word)
    if word in methods():
        yield _quantized(methods=[word])
    elif formats := tuple(_formats(word)):
        yield _quantized(formats=list(formats))
    if word in ("as it is", "dense", "unquantized", "bf16", "fp16"):
        yield at(("passes", "quantize"), "forbid")
    if kv_dtypes.kv_dtype(word) is not None:
        yield at(("passes", "kv_cache"), [word])
    if word in get_args(Goals.model_fields["prefer"].annotation):
        yield at(("goals", "prefer"), word)
    if (card := _card(name)) is not None:
        yield at(("target", "gpu"), card)
    if re.search(r"[\d/]", word) and find(name) is not None:  # a model's name has a figure or its publisher
        yield at(("model",), name.strip())


def known_words() -> tuple[str, ...]:
    """List every word that a change may begin with, for the nearest of a misspelt one."""
    keys = (path[-1].replace("_", " ") for path in places())
    cards = (alias for card in all_gpus() for alias in (card.name,))
    formats = (name for engine in ENGINE_NAMES for name in find_engine(engine).weighed_formats)
    return tuple(dict.fromkeys((*_CALLED, *keys, *ENGINE_NAMES, *methods(), *formats, *kv_dtypes.NAMES, *cards)))


def _change(text: str, spec: Spec, engine: Callable[[], str]) -> tuple[Spec, Patch]:
    """One change. The first reading of the words that gives a spec is taken."""
    refused: InputError | None = None
    text = _in_figures(text, spec)
    for patch in _readings(text, engine if spec.engine == "auto" else None):
        try:
            return patched(spec, patch), patch
        except InputError as error:
            refused = refused or (None if _no_figure(patch) else error)
    if refused is not None:
        raise InputError(f"{text!r}: {refused.message}", remedy=refused.remedy)
    if any(_paths(text)):
        raise InputError(
            f"{text!r} is a key of the spec: it wants a value", remedy="`optimize schema` prints what it may be"
        )
    close = nearest(re.sub(r"[\d.]+ ?", "", text) or text, known_words())
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise NotKnownError(
        f"{text!r} changes nothing that is known.{hint}",
        remedy="name a card, an engine, a format, or a key of the spec with its value (`optimize schema` prints them)",
    )


def _no_figure(patch: Patch) -> bool:
    """Whether a patch puts words where figures stand (`cheaper` cards): such words name the key, and say something else of it."""
    path, value = list[str](), patch
    while isinstance(value, Mapping) and len(value) == 1:
        [(key, value)] = value.items()
        path.append(key)
    said = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    shown = re.search(r"for example `[^`]*: ([^`]*)`", meaning(path) or "")
    return shown is not None and bool(re.match(r"\d", shown[1])) and not re.search(r"\d", said)


def _in_figures(text: str, spec: Spec) -> str:
    """A change that says how many times what the spec has (`twice the users`, `half the context`), with the figure that this makes."""
    said = re.fullmatch(rf"(?:(?:i|we|you) )?({'|'.join(_TIMES)})( .+)", text, re.IGNORECASE)
    if said is None:
        return text
    key = re.sub(r"^(?: (?:the|as|many|much|of|my|our|number))+", "", said[2], flags=re.IGNORECASE).strip()
    asked = spec.model_dump()
    for path in _paths(key):
        value: Any = asked
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        times = _TIMES[said[1].lower()]
        if path == ("workload", "rate") and math.isfinite(rate := spec.workload.rate or math.inf):
            return f"{rate * times:g} requests/s"
        if isinstance(value, int):
            return f"{key} {max(1, round(value * times))}"
    return text


def _readings(text: str, engine: Callable[[], str] | None) -> Iterator[Patch]:
    if (many := re.fullmatch(r"(\d+) (\S.*)", text)) and not text.endswith("bits"):
        card = _card(many[2]) or _card(many[2].removesuffix("s"))  # L40S is a card of its own, not several L40
        if card is not None:
            yield at(("target",), {"count": int(many[1]), "gpu": card})
    if several := re.fullmatch(r"(\d+)\s*[x×*]\s*(.+)", text, re.IGNORECASE):
        yield at(("target",), {"count": int(several[1]), "gpu": _card(several[2]) or find_gpu(several[2]).name})
        return
    if rate := re.fullmatch(
        r"(\d+(?:\.\d+)?)\s*(?:requests?|req)?\s*(?:/\s*s(?:ec(?:ond)?)?|(?:a|per) second)", text, re.IGNORECASE
    ):
        yield at(("workload",), {"rate": f"{rate[1]}/s", "concurrency": None})
    if without := re.fullmatch(r"(?:no|without)\s+(.+?)(?:\s+goal)?", text, re.IGNORECASE):
        yield from (at(path, _WITHOUT.get(path)) for path in _paths(without[1]))
        return
    yield from named(text)
    yield from (at(path, _ALLOWED[path]) for path in _paths(text) if path in _ALLOWED)
    for key, value in _pairs(text):
        for path in _paths(key):
            yield from _settled(path, value, engine)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """A key and its value, in either order."""
    words = text.split()
    for n in range(len(words) - 1, 0, -1):
        value = re.sub(r"^(=|of|to|is|at|most|≤|<=)\s*", "", " ".join(words[n:]))
        if value.count(" ") < _WORDS_OF_VALUE:
            yield " ".join(words[:n]), value
    yield from ((" ".join(words[n:]), " ".join(words[:n])) for n in range(1, min(len(words), _WORDS_OF_VALUE + 1)))
    if match := re.fullmatch(r"([\w. -]+?)\s*[=:]\s*(.+)", text):
        yield match[1], match[2]


def _paths(key: str) -> Iterator[Path]:
    """The places of the spec that a key may mean, nearest to the top first."""
    said = _CALLED.get(key.strip().lower(), key).strip().lower().replace(" ", "_").replace("-", "_")
    wanted = tuple(said.split("."))
    yield from (path for path in places() if path[-len(wanted) :] == wanted)


def _settled(path: Path, value: str, engine: Callable[[], str] | None) -> Iterator[Patch]:
    """The patches that a place with a value may mean: as text, as a number, with a unit, as a list."""
    if path == ("target", "count") and not value.isdigit() and (card := _card(value)) is not None:
        path, value = ("target", "gpu"), card
    if path == ("target", "gpu"):
        value = _card(value) or find_gpu(value).name
    if path == ("engine",):
        find_engine(value)
    if path == ("passes", "quantize", "formats"):
        pass_named(value)
        yield _quantized(formats=[value])
    own = at(("engine", "name"), engine()) if engine and path[0] == "engine" and len(path) > 1 else {}
    yield from (together(own, at(path, given)) for given in _values(value))


def _values(text: str) -> Iterator[Any]:
    """What a value may be: a whole number (`64k` is 65,536, `1m` 1,048,576), a number, text with the unit that it lacks, one of a list."""
    if match := re.fullmatch(r"(\d+(?:[_,]\d{3})*\s*[kKmM]?)(?: tokens?)?", text):
        yield int(str(as_typed_tokens(re.sub("[_,]", "", match[1]))))
    if re.fullmatch(r"\d*\.\d+", text):
        yield float(text)
    if text.lower() in ("true", "false"):
        yield text.lower() == "true"
    yield from (f"{text}{unit}" for unit in _UNITS)
    yield [text]


def _quantized(**choice: list[str]) -> Patch:
    """The quantization that is asked, in place of any other."""
    return at(("passes", "quantize"), {"formats": None, "methods": None, "dense": None} | choice)


def _formats(word: str) -> Iterator[str]:
    """The formats of the engines that a name, a group (`g64`) or bits (`4 bits`) means."""
    try:
        if pass_named(word) is not None:
            yield word
            return
    except InputError:
        pass
    names = dict.fromkeys(name for engine in ENGINE_NAMES for name in find_engine(engine).weighed_formats)
    if re.fullmatch(r"g\d+", word):
        yield from (name for name in names if word in name.split("-"))
    elif bits := re.fullmatch(r"(\d)[ -]?bits?", word):
        yield from (name for name in names if re.search(rf"(^w|-|fp){bits[1]}(a16|-|$)", name))


def _card(name: str) -> str | None:
    """A card as a spec names it; None where it is none. A size stays one. Raises SharedNameError for a name that several cards have."""
    try:
        return re.sub(r"\s", "", name) if re.match(r"\d+\s*[gG]", name) and find_gpu(name) else find_gpu(name).name
    except SharedNameError:
        raise
    except InputError:
        return None

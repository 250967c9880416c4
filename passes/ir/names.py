"""From the name a person writes to a model of the catalog.

In this order: the exact id; the same with case, spaces and dashes ignored, with or without the organisation; a known other
spelling (`aliases.json`); the same model in another variant (base, instruct, chat: same shapes, other weights), which is said; the
beginning of one model's name only, which is said, too (`smollm3`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import InputError, unknown_name
from passes.ir import catalog
from passes.record import dataclass

#: Words of a name that change a model's weights but not its shapes.
_VARIANTS = frozenset({"instruct", "chat", "it", "base"})

#: Words that say that all is stored in 16 bits, as most models are anyway.
_DENSE = frozenset({"fp16", "bf16"})
#: Words of a name that change neither.
_EMPTY = frozenset({"hf", "meta", "mtp"}) | _DENSE
#: Words of names of models that write no text (their cards on the Hub): embeddings, rerankers, encoders, speech, pictures.
_WRITES_NOTHING = frozenset({
    "bge", "e5", "gte", "minilm", "bert", "roberta", "deberta", "modernbert", "reranker", "embed", "embedding", "whisper", "clip", "siglip",
    "flux", "sdxl", "diffusion",
})  # fmt: skip
#: Those of models that score a text or a pair of them.
_SCORES = frozenset({"reranker", "rerank", "reward", "prm"})
#: `internlm2_5` means 2.5.
_DECIMAL = re.compile(r"(?<=\d)_(?=\d)")
#: A release's date: another release is another model.
_DATE = re.compile(r"\d{4,6}")
_SEPARATORS = re.compile(r"[\s\-_:()]+")
#: Words for a smaller or another sibling: a name without them is that of the whole model (`DeepSeek-V2` is not `DeepSeek-V2-Lite`).
_SIBLINGS = frozenset(
    {"lite", "mini", "small", "nano", "tiny", "air", "flash", "super", "lightning", "large", "medium", "pro", "code"}
)
#: What is neither a letter, a digit nor a dot.
_OTHER = re.compile(r"[^\w.]|_")
#: So many of the models that a short name may stand for are said.
_SHOWN = 5
REMEDY = "Give a folder, a .gguf file, a Hub id, or a name that `optimize models` lists."


@dataclass(frozen=True, slots=True)
class Match:
    """A catalog id, and a note where the name asked for is another variant of that model.

    `quantization`: the `quantization_config` that such a name usually means, where only the dense model is in the catalog; `spread`:
    relative 90 % half width of the bytes that this gives. `dense`: the name says 16 bits of a model whose own files have fewer. `config`:
    what a published checkpoint's config has otherwise.
    """

    id: str
    note: str | None = None
    quantization: Mapping[str, Any] | None = None
    spread: float = 0.0
    dense: bool = False
    config: Mapping[str, Any] | None = None


def fold(name: str) -> str:
    """Reduce a name to lower-case letters, digits and dots."""
    return _OTHER.sub("", name.lower().replace("+", "plus"))


def _words(name: str) -> list[str]:
    return [word for word in _SEPARATORS.split(_DECIMAL.sub(".", name.lower())) if word]


def writes_nothing(name: str) -> bool:
    """Tell whether a model is by its name one that reads and writes no text: an encoder, or one of pictures or speech."""
    return bool((_WRITES_NOTHING | _SCORES) & set(_words(_bare(name))))


def holds_gguf(name: str) -> bool:
    """Tell whether a repository is by its name one of GGUF files."""
    return "gguf" in _words(_bare(name))


def scores(name: str) -> bool:
    """Tell whether a model is by its name one that scores what it reads: a reranker, a reward model."""
    return bool(_SCORES & set(_words(_bare(name))))


def _bare(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _family(name: str) -> str:
    return fold("".join(_plain(name)))


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Catalog ids by folded id and by folded bare name (first wins); and by variant-free bare name."""
    folded: dict[str, str] = {}
    families: dict[str, list[str]] = {}
    for known in catalog.ids():
        folded.setdefault(fold(known), known)
        families.setdefault(_family(known), []).append(known)
    for known in catalog.ids():
        folded.setdefault(fold(_bare(known)), known)
    return folded, families


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    table = json.loads(Path(catalog.__file__).with_name("aliases.json").read_text())["aliases"]
    return {fold(name): target for name, target in table.items()}


@lru_cache(maxsize=1)
def _conventions() -> list[dict[str, Any]]:
    """How publishers store what a name says, the first row that matches (`conventions.json`)."""
    rows: list[dict[str, Any]] = json.loads(Path(catalog.__file__).with_name("conventions.json").read_text())[
        "conventions"
    ]
    return rows


@lru_cache(maxsize=1)
def _stored() -> frozenset[str]:
    """Words that say how a repository's weights are stored."""
    return frozenset(word for row in _conventions() for word in row["words"])


#: A repository's folder in the Hub's cache: `models--meta-llama--Llama-3.1-8B-Instruct/snapshots/0e9e39f2…`.
_CACHED = re.compile(r"(?:.*/)?models--([^/]+?)--([^/]+)(?:/.*)?")


def repository_of(path: str) -> str:
    """Return the name that a folder goes by: the repository's, of one in the Hub's cache; else as it stands, without a slash behind."""
    cached = _CACHED.fullmatch(path)
    return f"{cached[1]}/{cached[2]}" if cached else path.rstrip("/") or path


def find(name: str) -> Match | None:
    """Find the catalog's model for a name; None where there is none."""
    folded, families = _index()
    if name in catalog.ids():
        return Match(name)
    if known := folded.get(fold(name)):
        return Match(known)
    for key in (fold(name), fold(_bare(name))):
        if target := _aliases().get(key):
            return Match(target, f"{name} is read as {target}")
        if "/" in name and (known := folded.get(key)):
            # Another publisher's file of that name is stored as that publisher stores: this one's own way, where it is known, goes first.
            namesake = Match(known, f"{name} is not in the catalog; shapes of {known}, of the same name")
            return (_quantized(name) if set(_words(_bare(known))) & _stored() else None) or namesake
    if candidates := families.get(_family(name)):
        words = set(_words(_bare(name)))
        best = min(candidates, key=lambda known: (len(words ^ set(_words(_bare(known)))), candidates.index(known)))
        if (said := words & _DENSE) and not said & set(_words(_bare(best))) and catalog.entry(best).stored_quantized:
            note = f"{name} is not in the catalog; shapes of {best}, all of them in 16 bits as its name says"
            return Match(best, note, dense=True)
        other = (words ^ set(_words(_bare(best)))) & _VARIANTS
        return Match(best, f"{name} is not in the catalog; shapes of {best}" if other else None)
    return _quantized(name) or _begun(name)


@dataclass(frozen=True, slots=True)
class Published:
    """A published checkpoint as its name is read: `weights` as `check --weights` takes it, `quant_method` as its config has it."""

    id: str
    weights: str
    quant_method: str
    source: str


@lru_cache(maxsize=64)
def published_of(model: str) -> tuple[Published, ...]:
    """Return the quantized checkpoints that are known to be made of a model of the catalog, by its id."""
    read = ((row, convention(row.id, row.of)) for row in _published_rows().get(_stem(model), ()))
    return tuple(
        Published(row.id, row.weights or usual["weights"], usual["settings"]["quant_method"], row.source)
        for row, usual in read
        if usual is not None
    )


@lru_cache(maxsize=256)
def recalled(made: Published) -> bool:
    """Tell whether the catalog only recalls how a published checkpoint is stored."""
    return made.id in catalog.ids() and catalog.entry(made.id).note is not None


@lru_cache(maxsize=64)
def made_of(name: str) -> tuple[str, Published] | None:
    """Return the catalog's model that a quantized checkpoint was made of, and how it is stored: as `published.json` has it, else by the
    words of its name; None where neither tells.
    """
    row = _rows_by_id().get(fold(name))
    words = _words(_bare(name))
    dense = row.of if row else "-".join(word for word in words if word not in _stored())
    base = find(dense) if row or set(words) & _stored() else None
    if base is None or not (row or base.note is None or _family(base.id) == _family(dense)):
        return None
    if (usual := convention(name, base.id)) is None:
        return None
    weights = (row and row.weights) or usual["weights"]
    source = row.source if row else f"the name of {name}"
    return base.id, Published(name, weights, usual["settings"]["quant_method"], source)


def released_so(name: str) -> bool:
    """Tell whether a name is a model's own in the catalog, which says no way of storing it: what its maker released is the source."""
    known = name in catalog.ids() or fold(name) in _index()[0]
    return known and fold(name) not in _rows_by_id() and not set(_words(_bare(name))) & _stored()


@lru_cache(maxsize=1)
def _rows_by_id() -> dict[str, catalog.PublishedRow]:
    """The catalog's published checkpoints by their folded ids."""
    return {fold(row.id): row for row in catalog.published()}


@lru_cache(maxsize=1)
def _published_rows() -> dict[str, list[catalog.PublishedRow]]:
    """The catalog's published checkpoints by the stem of the model that each was made of."""
    index: dict[str, list[catalog.PublishedRow]] = {}
    for row in catalog.published():
        index.setdefault(_stem(row.of), []).append(row)
    return index


def _stem(model: str) -> str:
    """A model's bare name, folded, without words that say nothing (`Meta-Llama-3.1-8B` is `Llama-3.1-8B`)."""
    return fold("".join(word for word in _words(_bare(model)) if word not in _EMPTY))


def _begun(name: str) -> Match | None:
    """The one model whose name begins with these words and goes on with more than a date, and with no word for a sibling."""
    found = {tuple(rest): known for known, rest in reversed(_longer(name).items())}
    if len(found) != 1:
        return None
    [(rest, known)] = found.items()
    other = all(_DATE.fullmatch(word) for word in rest) or _SIBLINGS & set(rest)
    return None if other else Match(known, f"{name} is read as {known}")


def _longer(name: str) -> dict[str, list[str]]:
    """The models whose names begin with these words, quantizations aside, with the words that follow."""
    asked, stored = "".join(_plain(name)), _stored()
    return {
        known: words[count:]
        for known in catalog.ids()
        if asked and not set(words := _plain(known)) & stored and (count := _begins(words, asked)) is not None
    }


def begun_by(name: str) -> tuple[str, ...]:
    """List the models that a short name may stand for: of the maker of most of them first, then of fewest words."""
    longer = _longer(name)
    makers = Counter(known.partition("/")[0] for known in longer)
    return tuple(sorted(longer, key=lambda known: (-makers[known.partition("/")[0]], len(longer[known]))))


def _begins(words: list[str], asked: str) -> int | None:
    """How many of the words are what is asked, however that is cut (`llama3` is `llama 3`); None where they do not begin so."""
    return next((count for count, said in enumerate(itertools.accumulate(words), 1) if said == asked), None)


def _plain(name: str) -> list[str]:
    """The words that say which model, without its variant."""
    return [word for word in _words(_bare(name)) if word not in _VARIANTS | _EMPTY]


def convention(name: str, model: str) -> dict[str, Any] | None:
    """Find how the publisher of a repository usually stores what its name says of a model: a row of `conventions.json`, or None."""
    told = set(_words(_bare(name))) & _stored()
    publisher = name.rpartition("/")[0]
    for row in _conventions():
        made_by = re.fullmatch(row.get("publisher", ".*"), publisher)
        if set(row["words"]) == told and made_by and re.search(row.get("model", ""), model):
            return row
    return None


def _quantized(name: str) -> Match | None:
    """A quantized repository of a model whose dense version is known: the one it was made of, else the one its other words name."""
    words = _words(_bare(name))
    row_of = _rows_by_id().get(fold(name))
    dense = row_of.of if row_of else "-".join(word for word in words if word not in _stored())
    if not set(words) & _stored() or (base := find(dense)) is None or (row := convention(name, base.id)) is None:
        return None
    note = f"{name} is not in the catalog; shapes of {base.id}, assumed stored as {row['said']} ({row['source']})"
    return Match(base.id, note, row["settings"], row["spread"], config=row_of.config if row_of else None)


def unknown_model(name: str) -> InputError:
    """Make the error for a model that nothing knows, with the nearest names, or with what a published checkpoint was made of."""
    if made := _rows_by_id().get(fold(name)):
        return InputError(f"{name} was made of {made.of}, whose shapes are not known here", remedy=REMEDY)
    if writes_nothing(name):
        return InputError(
            f"{name} is by its name an encoder, or a model of pictures or speech, which writes no text",
            remedy="Encoders such as BERT's are understood from their folder: give it. Of models that embed texts the catalog has "
            "Qwen/Qwen3-Embedding-0.6B.",
        )
    if holds_gguf(name):
        base = find("-".join(word for word in _words(_bare(name)) if word != "gguf"))
        ours = (
            f", or {base.id} with `--weights`; or say which, as vLLM takes it: {name}:Q4_K_M"
            if base is not None
            else ""
        )
        return InputError(
            f"{name} is by its name a repository of GGUF files, one a format",
            remedy=f"Download the one you want, and give its path{ours}.",
        )
    if several := begun_by(name):
        more = f" and {len(several) - _SHOWN} more" if len(several) > _SHOWN else ""
        return InputError(f"{name!r} may be {', '.join(several[:_SHOWN])}{more}", remedy=f"Say which. {REMEDY}")
    remedy = REMEDY
    if name.startswith(("/", "~", ".")) and len(parts := [part for part in name.split("/") if part]) > 2:
        remedy = f"{REMEDY} A folder of another machine can be named by what it holds: --model {parts[-2]}/{parts[-1]} before the command."
    return unknown_name("model", name, [*catalog.ids(), *(_bare(known) for known in catalog.ids())], remedy=remedy)

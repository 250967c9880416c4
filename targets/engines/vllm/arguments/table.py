"""The flags of `vllm serve` by name: what each takes, its other spellings, the versions that have it.

`flags.jsonl`, made by `benchmarks/read_vllm_flags.py` from the engine's own parser (0.32) and from the sources of 0.6 to 0.33.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import InputError, unknown_name
from passes.record import dataclass
from targets.engines.vllm.rules.versions import parse_version


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag without its dashes. `takes`: `none`, `value`, `optional` or `values`; `since`, `until`: the first and the last of the
    versions read that have it, None where it is there at that end; `of_engine`: an argument of the engine, not of its server; `choices`:
    the only values that it takes in `CHOICES_OF`, none where it takes more; `former`: values that only older versions took.
    """

    name: str
    takes: str
    since: str | None
    until: str | None
    of_engine: bool
    choices: tuple[str, ...] = ()
    former: tuple[str, ...] = ()

    def took(self, value: Any) -> bool:
        """Return whether a value is one that only older versions than `CHOICES_OF` took: it went as flags go, and is no mistake there."""
        return isinstance(value, str) and value.lower() in self.former

    def refuse(self, value: str, version: str | None) -> None:
        """Raise InputError with the nearest value for one that the flag does not take. Words come and go with versions, of which one older
        than the list is not judged; numbers only came.
        """
        if not self.choices or self.took(value) or value.lower() in {choice.lower() for choice in self.choices}:
            return
        numbers = sorted(int(choice) for choice in self.choices if choice.isdigit())
        if len(numbers) == len(self.choices):
            larger = next((number for number in numbers if value.isdigit() and number >= int(value)), numbers[-1])
            listed = ", ".join(map(str, numbers))
            raise InputError(f"--{self.name} {value} is out of range: it takes {listed}", remedy=f"write {larger}")
        if version is None or parse_version(version) >= parse_version(CHOICES_OF):
            raise unknown_name(
                f"value of --{self.name}",
                value,
                self.choices,
                remedy=f"vLLM {CHOICES_OF} takes: {', '.join(self.choices)}",
            )


#: The version whose parser was asked for what flags take.
CHOICES_OF = "0.32.0"

#: Spellings that no parser lists: of a level in one word (`-O3`), and the engine's other names for a field.
_ALSO = {"-O": "optimization-level", "--device-memory-utilization": "gpu-memory-utilization"}
#: Flags of programs that people start in the same words, and what those do.
_OF_OTHERS = {
    "--omni": "vLLM-Omni, an engine of its own that makes speech, pictures and video: it is not described here"
}
#: Groups of the parser that hold arguments of the server.
_OF_SERVER = {"options", "Frontend"}


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, Flag], dict[str, str]]:
    """The flags by name, and names by every other spelling, dashes included."""
    text = Path(__file__).with_name("flags.jsonl").read_text(encoding="utf-8")
    flags: dict[str, Flag] = {}
    spelled = dict(_ALSO)
    for row in map(json.loads, text.splitlines()):
        name = row["flag"].removeprefix("--")
        of_engine = row.get("group") is not None and row["group"] not in _OF_SERVER
        flags[name] = Flag(
            name, row["takes"], row.get("since"), row.get("until"), of_engine, tuple(row.get("choices", ())),
            tuple(row.get("former", ())),
        )  # fmt: skip
        spelled |= {row["flag"]: name} | dict.fromkeys(row.get("also", ()), name)
    return flags, spelled


def flag_names() -> tuple[str, ...]:
    """Return every flag's name, without dashes."""
    return tuple(_index()[0])


def find_flag(written: str, known: Iterable[str] = ()) -> tuple[Flag, bool, tuple[str, ...]]:
    """Return the flag that is written (`--max_model_len`, `-tp`, `--no-enforce-eager`, `-cc.mode`), whether it is switched off, and
    the keys behind its dots. `known`: further names that a misspelt one may be near.

    Raises InputError with the nearest names for one that vLLM has not.
    """
    flags, spelled = _index()
    head, *keys = written.removesuffix("+").split(".")
    folded = head.replace("_", "-")
    if folded in spelled:
        return flags[spelled[folded]], False, tuple(keys)
    if folded.startswith("--no-") and (name := spelled.get("--" + folded[5:])) and flags[name].takes == "none":
        return flags[name], True, tuple(keys)
    if (program := _OF_OTHERS.get(folded)) is not None:
        raise InputError(
            f"{written} is a flag of {program}", remedy="leave it out to size what vLLM alone would serve of it"
        )
    begun = [name for name in flags if folded.startswith("--") and f"--{name}".startswith(folded)]
    if len(begun) == 1:  # argparse takes what begins one flag alone
        return flags[begun[0]], False, tuple(keys)
    raise unknown_name(
        "flag of vLLM", written, [*(f"--{name}" for name in flags), *known],
        remedy="`vllm serve --help=all` lists its flags; those of `optimize check` stand before the `--`",
    )  # fmt: skip

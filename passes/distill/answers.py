"""What a teacher wrote, and which of it is fit to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from passes.record import dataclass

#: Words below which an answer says too little to learn from.
LEAST_WORDS = 8
#: Runs of so many words are looked at for repetition, of which at least this share must differ.
RUN, DISTINCT = 4, 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """One text of a teacher. `finished`: whether it came to an end by itself; None where nobody says."""

    prompt: str
    text: str
    finished: bool | None = None

    @property
    def whole(self) -> str:
        """Prompt and answer, as a student reads them."""
        return self.prompt + self.text


def fault(answer: Answer) -> str | None:
    """Say why an answer alone is not fit to learn from: `short`, `unfinished` or `repetitive`; None where it is."""
    words = answer.text.split()
    if len(words) < LEAST_WORDS:
        return "short"
    if answer.finished is False:
        return "unfinished"
    runs = [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
    return "repetitive" if len(set(runs)) < DISTINCT * len(runs) else None


def fit_answers(answers: Iterable[Answer], dropped: Counter[str]) -> Iterator[Answer]:
    """Yield the answers that are fit to learn from, each text once; `dropped` counts the others by their fault."""
    seen: set[str] = set()
    for answer in answers:
        same = " ".join(answer.text.lower().split())
        reason = "duplicate" if same in seen else fault(answer)
        if reason is None:
            seen.add(same)
            yield answer
        else:
            dropped[reason] += 1

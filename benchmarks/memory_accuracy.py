"""Holds the memory estimator against real vLLM start-ups and prints errors by term, family, quantization and version.

    python -m benchmarks.memory_accuracy [--rows] [--keep]

Every term is predicted from the start-up's arguments alone, with what is fitted made without the start-up's own source (publication): these
are the figures of record. `--fitted`: with the fit as it is shipped. `--rows`: one line a start-up first. `--keep`: the tables are those
that `docs/accuracy.md` shows from now on (`python -m benchmarks.results` writes them there). Rows and their sources: `data/vllm_memory_logs.jsonl`.
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from benchmarks.fit_memory import FIT, Fits, questions
from benchmarks.memory_rows import ROWS, Question, ask, load_rows
from benchmarks.results import keep
from passes.errors import TightfitError
from targets.engines.engine import MemoryEstimate, find_engine
from targets.engines.vllm.memory import activations

_GIB = 1 << 30


@dataclass(frozen=True)
class Answer:
    """A start-up, what was predicted, and whether the engine was said to refuse it."""

    question: Question
    estimate: MemoryEstimate
    illegal: bool

    def weights_error(self) -> float | None:
        """Relative error of the resident weights, signed; None where the row's figure is not clean."""
        row = self.question.row
        if not row["weights_gib"] or not row["score_weights"] or (row["pp"] or 1) > 1:
            return None
        return self.estimate.memory.weights.value / _GIB / float(row["weights_gib"]) - 1

    def tokens_error(self) -> float | None:
        """Relative error of the KV tokens, signed."""
        tokens = self.question.tokens
        if not tokens or not self.question.row["score_tokens"]:
            return None
        return self.estimate.kv.tokens.value / tokens - 1

    def per_token_error(self) -> float | None:
        """Relative error of KV bytes a token, signed."""
        row, tokens = self.question.row, self.question.tokens
        if not tokens or not row["available_kv_gib"] or not row["score_weights"]:
            return None
        return self.estimate.kv.bytes_per_token / (float(row["available_kv_gib"]) * _GIB / tokens) - 1

    def difference(self, term: str, key: str) -> float | None:
        """Predicted minus printed bytes of a term, in GiB."""
        printed = self.question.row[key]
        if printed is None or not self.question.row["score_tokens"]:
            return None
        return float(getattr(self.estimate.memory, term).value) / _GIB - float(printed)


def answer(question: Question) -> Answer:
    """What the estimator says of one start-up."""
    engine = find_engine("vllm")
    estimate = engine.memory(question.ir, question.gpu, question.settings, question.workload)
    return Answer(question, estimate, bool(engine.illegal(question.ir, question.gpu, question.settings)))


def asked() -> tuple[list[Question], int]:
    """Every row that can be asked, and how many cannot."""
    out, unanswered = [], 0
    for row in load_rows():
        try:
            out.append(ask(row))
        except TightfitError:
            unanswered += 1
    return out, unanswered


def left_out(found: Sequence[Question]) -> list[Answer]:
    """Answers to every row by a fit made without its source."""
    fits, out = Fits(questions()), []
    for source in dict.fromkeys(question.source for question in found):
        with patch.object(activations, "fit", return_value=fits.document(source)):
            out += [answer(question) for question in found if question.source == source]
    return out


def line(name: str, errors: Sequence[float], scale: float, unit: str) -> str:
    """One row of a table: count, median signed, median, 90th percentile and largest absolute error."""
    size = sorted(abs(e) for e in errors)
    cells = (statistics.median(errors), statistics.median(size), size[int(0.9 * (len(size) - 1))], size[-1])
    signed, *rest = (scale * value for value in cells)
    return f"| {name} | {len(errors)} | {signed:+.3f}{unit} | " + " | ".join(f"{v:.3f}{unit}" for v in rest) + " |"


def kept(values: Iterable[float | None]) -> list[float]:
    """Those that are there."""
    return [value for value in values if value is not None]


def grouped(found: list[Answer], key: Callable[[Answer], str]) -> dict[str, list[Answer]]:
    """Answers by a property of theirs."""
    out: dict[str, list[Answer]] = defaultdict(list)
    for answer in found:
        out[key(answer)].append(answer)
    return dict(sorted(out.items()))


def report(found: list[Answer], unanswered: int) -> None:
    """Print the tables."""
    head = "| | rows | median, signed | median | 90 % | largest |\n|---|---|---|---|---|---|"
    print(f"{len(found)} start-ups answered, {unanswered} not\n\n{head}")
    for name, method in (
        ("weights", Answer.weights_error),
        ("KV bytes a token", Answer.per_token_error),
        ("KV tokens", Answer.tokens_error),
    ):
        print(line(name, kept(map(method, found)), 100, " %"))
    for term, key in (
        ("activations", "activation_peak_gib"),
        ("non_torch", "non_torch_gib"),
        ("kv_cache", "available_kv_gib"),
    ):
        print(line(f"{term}, predicted − printed", kept(a.difference(term, key) for a in found), 1, " GiB"))
    groups: tuple[tuple[str, Callable[[Answer], str]], ...] = (
        ("source", lambda a: "llm-d campaign, 0.15–0.19" if "llm-d" in a.question.source else "everyone else"),
        ("version", lambda a: ".".join((a.question.row["vllm_version"] or "not printed").split(".")[:2])),
        ("family", lambda a: a.question.ir.model_type),
        ("quantization", lambda a: str(a.question.ir.quant_method or "none")),
    )
    for title, key in groups:
        print(f"\nKV tokens by {title}\n\n{head}")
        for name, members in grouped(found, key).items():
            if errors := kept(a.tokens_error() for a in members):
                print(line(name, errors, 100, " %"))
    print("\n" + verdicts(found))


def intervals(name: str, found: Sequence[Answer]) -> str:
    """How often the 90 % intervals of the tokens hold, and how wide they are."""
    quantities = [(a.estimate.kv.tokens, a.question.tokens or 0) for a in found if a.tokens_error() is not None]
    cover = sum(q.low <= truth <= q.high for q, truth in quantities)
    half = statistics.median((q.high - q.low) / 2 / max(q.value, 1) for q, _ in quantities)
    return f"{name}: the 90 % interval of the tokens covers {cover} of {len(quantities)}, half width {100 * half:.2f} % in the median"


def verdicts(found: list[Answer]) -> str:
    """Intervals and yes/no answers against what happened."""
    failed = [a for a in found if a.question.row.get("predictable")]
    wrong = sum(a.estimate.starts and not a.illegal for a in failed)
    started = [a for a in found if a.question.row["oom"] is False and a.question.row["score_tokens"]]
    alarms = sum(a.illegal or not a.estimate.starts for a in started)
    others = [a for a in found if "llm-d" not in a.question.source]
    return (
        f"{intervals('all', found)}\n{intervals('without the campaign', others)}\n"
        f'"starts" said of {wrong} of {len(failed)} predictable failures; {alarms} false alarms on {len(started)} that started'
    )


def show_rows(found: list[Answer]) -> None:
    """One line a start-up."""
    for answer in found:
        errors = (answer.weights_error(), answer.tokens_error())
        cells = " ".join("      - " if e is None else f"{100 * e:+7.2f}%" for e in errors)
        print(f"{answer.question.row['id'][:52]:52s} {cells}")


def main() -> None:
    """Ask every row, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--fitted", action="store_true")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    rows, unanswered = asked()
    found = [answer(row) for row in rows] if arguments.fitted else left_out(rows)
    if arguments.rows:
        show_rows(found)
    told = io.StringIO()
    with redirect_stdout(told):
        report(found, unanswered)
    print(told.getvalue())
    if arguments.keep and not arguments.fitted:
        keep("memory", "python -m benchmarks.memory_accuracy --keep", (FIT, ROWS), told.getvalue())


if __name__ == "__main__":
    main()

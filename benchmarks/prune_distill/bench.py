"""What the stages share: the model, its texts, how much of a perplexity a model loses on them, and lines with their goals."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.prune_distill.subject import Subject
from benchmarks.real_models import CACHE
from benchmarks.text import apart, libraries_file, news_file
from passes.blocks.dense_model import DenseModel
from passes.blocks.memory import BATCH_TOKENS, LOGIT_TOKENS
from passes.files.atomic import write_text
from passes.ir.sources import open_model
from passes.measure.evaluate import through
from passes.prune.depth import DepthPrune
from passes.run.execute import calm_libraries, source_model
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.steps.progress import Progress
from passes.steps.step import Steps
from passes.text.source import PYTHON_REFERENCE, TextSource, first_tokens, tokenizer_of, tokens_digest
from passes.text.token_file import read_tokens, token_file

#: What is kept of a run, so that one that was killed goes on: steps under their keys.
WORK = CACHE / "prune-distill"
#: What pruning and tuning look at: so many rounds (`Subject.rounds`) of so many sequences that the model writes itself, of news, and of what
#: libraries say of themselves. One kind of text alone has units stay that only it needs, and what is fitted to it is lost on others
#: (docs/quantization.md).
WRITTEN, NEWS, DOCUMENTATION = 1, 3, 4
LENGTH = 256
#: What everything is judged on, and nothing is fitted to: a text of another source, and other news; shorter sequences. The measure of
#: importance, the kinds of text that are looked at and the tokens of tuning were settled on earlier trials that read parts of the same two sources.
SHORTER = 128
#: Sequences of news whose last ones judge, however many others are looked at.
DRAWN = 68
JUDGING = ("Python's reference", "news")


@dataclass(frozen=True)
class Bench:
    """A model in single precision on the processor, as `source`; `run` with its calibration text; `judging` `[S, T]`: both texts';
    `lessons`: the file with what students are trained on.
    """

    subject: Subject
    source: DenseModel
    run: RunContext
    judging: torch.Tensor
    lessons: Path

    def within(self, name: str, sequences: int | None = None) -> RunContext:
        """Return the run with a folder of its own for what a stage keeps, on the first `sequences` of its text."""
        folder = self.run.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return self.run.part(folder).on_text(self.run.text[:sequences])

    def losses(self, dense: DenseModel) -> torch.Tensor:
        """Return the mean negative log-likelihood of each judging sequence `[S]`, measured once for a model."""
        key = content_key(*dense.identity, "losses", tokens_digest(self.judging))
        run = self.within("judged").on_text(self.judging)
        found = run.measured("judge", "losses", key, lambda inside: {"losses": _losses(dense, inside)})
        return torch.tensor(found["losses"], dtype=torch.float64)

    def rises(self, dense: DenseModel) -> dict[str, torch.Tensor]:
        """Return by how much a model's loss lies above the source's, of each sequence of each judging text."""
        parts = torch.split(self.losses(dense) - self.losses(self.source), self.subject.judged)
        return dict(zip(JUDGING, parts, strict=True))


def growth(rises: torch.Tensor) -> float:
    """Return by which share the perplexity over some sequences grows."""
    return math.expm1(float(rises.mean()))


@dataclass(frozen=True)
class Figure:
    """A figure and its standard error over sequences (jackknife)."""

    value: float
    error: float = 0.0


def jackknife(of: Callable[[Sequence[torch.Tensor]], float], rises: Sequence[torch.Tensor]) -> Figure:
    """Return a figure of what some models lose on the same sequences, and its standard error: each sequence left out in turn."""
    count = len(rises[0])
    without = [of([torch.cat([each[:left], each[left + 1 :]]) for each in rises]) for left in range(count)]
    mean = sum(without) / count
    return Figure(of(rises), math.sqrt((count - 1) / count * sum((each - mean) ** 2 for each in without)))


def grown(rises: torch.Tensor) -> Figure:
    """Return by how many per cent perplexity grows."""
    return jackknife(lambda found: 100 * growth(found[0]), [rises])


def ratio(rises: torch.Tensor, of: torch.Tensor) -> Figure:
    """Return which part of one rise of perplexity another is."""
    return jackknife(lambda found: growth(found[0]) / growth(found[1]), [rises, of])


@dataclass(frozen=True)
class Line:
    """A line of the report: what was measured, and the goal, a bound from above (None: told only)."""

    name: str
    figure: Figure
    unit: str
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.at_most is None or self.figure.value <= self.at_most

    def text(self) -> str:
        """Return the line for people."""
        goal = "" if self.at_most is None else f"   goal: at most {self.at_most:g}   {'met' if self.met else 'missed'}"
        spread = f"± {self.figure.error:.4f}" if self.figure.error else ""
        return f"{self.name:66} {self.figure.value:9.4f} {spread:10} {self.unit:12}{goal}"


def lines(name: str, unit: str, figures: Mapping[str, Figure], at_most: float | None = None) -> Iterator[Line]:
    """Yield a line for each judging text."""
    for text, figure in figures.items():
        yield Line(f"{name}, on {text}", figure, unit, at_most)


@contextmanager
def opened(subject: Subject, work: Path = WORK, blocks: int | None = None) -> Iterator[Bench]:
    """Hold the bench: model and texts, made where they are not there yet. `blocks`: of the model only the first so many."""
    calm_libraries()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    work.mkdir(parents=True, exist_ok=True)
    opened_model = open_model(subject.file())
    files = opened_model.materialize(work)
    device, dtype = torch.device("cpu"), torch.float32
    nothing = torch.zeros(0, 1, dtype=torch.int64)
    run = RunContext(work, (device,), dtype, nothing, Steps(work, _told()))
    calibration, judging = _texts(subject, run, files)
    source = source_model(opened_model.ir, files, dtype, (device,))
    if blocks is not None:
        run = run.part(work / f"{blocks}-blocks")
        gone = tuple(range(blocks, len(source)))
        source = DepthPrune(len(gone), gone).dense(source, run)
    lessons = _lessons(work / f"lessons-{subject.name}.jsonl", files, calibration, judging[subject.judged :])
    yield Bench(subject, source, replace(run, text=calibration), judging, lessons)


def _texts(subject: Subject, run: RunContext, files: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The calibration text and both judging texts `[S, T]`; of the news no part is in both."""

    def read(name: str, source: TextSource) -> torch.Tensor:
        return read_tokens(token_file(run, files, name, source))

    rounds = subject.rounds
    # Where a text begins with a token of its own, the second half of a sequence is no text.
    parts = 1 if first_tokens(tokenizer_of(files)) else LENGTH // SHORTER
    written = read("calibration text", TextSource("self", rounds * WRITTEN, LENGTH))
    judges = read("news", TextSource(str(news_file()), DRAWN, LENGTH))[-(subject.judged // parts) :]
    news = read("more news", TextSource(str(news_file()), rounds * NEWS + len(judges), LENGTH))
    news = news[~(news[:, None] == judges).all(-1).any(1)][: rounds * NEWS]
    reference = read("evaluation text", TextSource(PYTHON_REFERENCE, subject.judged, SHORTER))
    documentation = read("documentation", TextSource(str(libraries_file()), rounds * DOCUMENTATION, LENGTH))
    kinds = [kind.unflatten(0, (rounds, -1)) for kind in (written, news, documentation)]
    judging = judges[:, : parts * SHORTER].reshape(-1, SHORTER)
    return torch.cat(kinds, 1).flatten(0, 1), torch.cat([reference, judging])


def _lessons(path: Path, files: Path, calibration: torch.Tensor, judging: torch.Tensor) -> Path:
    """The file with what students are trained on: as much of news as of documentation, none of what is judged on, and what the model wrote."""

    def decode(tokens: torch.Tensor) -> list[str]:
        return tokenizer_of(files).batch_decode(tokens, skip_special_tokens=True)

    news = apart(news_file().read_text(encoding="utf-8").splitlines(), decode(judging))
    size = sum(map(len, news)) // len(news)
    documentation = libraries_file().read_text(encoding="utf-8")
    told = [documentation[start : start + size] for start in range(0, size * len(news), size)]
    written = calibration.unflatten(0, (-1, WRITTEN + NEWS + DOCUMENTATION))[:, :WRITTEN]
    found = [*news, *told, *decode(written.flatten(0, 1))]
    random.Random(0).shuffle(found)  # what is held out is of all kinds as well
    text = "".join(json.dumps(each) + "\n" for each in found)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def _losses(dense: DenseModel, run: RunContext) -> list[float]:
    stream, found = through(dense, run, BATCH_TOKENS), []
    at_once = max(1, LOGIT_TOKENS // run.text.shape[1])
    with stream.decoders[0].head():
        for number, ids in enumerate(stream.batches):
            states = stream.hidden.read(len(dense), number)[:, :-1]
            for part, following in zip(states.split(at_once), ids[:, 1:].split(at_once), strict=True):
                logits = stream.decoders[0].logits(part).float()
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
                found += loss.view(len(part), -1).mean(1).tolist()
    return found


def _told() -> Callable[[Progress], None]:
    said: set[str] = set()

    def tell(event: Progress) -> None:
        if event.step not in said:
            said.add(event.step)
            print(f"  … {event.step}", flush=True)

    return tell

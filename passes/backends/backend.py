"""What an outside tool is to tightfit: which passes it makes, its command, and how its progress reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from passes.base import Pass
from passes.errors import Reason
from passes.record import dataclass

P = TypeVar("P", bound=Pass)


@dataclass(frozen=True)
class Task(Generic[P]):
    """What is to be made: `pass_` on the dense model in `source`, with the token blocks in `tokens` (`input_ids`, samples × length).

    `work` is the task's own folder: the job file, the tool's scratch files and log, and at the end `out`. `cards`: the cards that the tool
    sees, as CUDA_VISIBLE_DEVICES names them; None: those that this process sees.
    """

    pass_: P
    source: Path
    tokens: Path
    samples: int
    length: int
    work: Path
    cards: str | None = None

    @property
    def out(self) -> Path:
        """Where the tool leaves its checkpoint."""
        return self.work / "out"

    @property
    def job(self) -> Path:
        """The job file."""
        return self.work / "job.json"

    @property
    def scratch(self) -> Path:
        """The tool's own working folder, kept where it can resume."""
        return self.work / "scratch"


class Backend(ABC, Generic[P]):
    """An outside tool."""

    name: ClassVar[str]
    #: The pass that it makes, the same as `P`.
    takes: ClassVar[type[Pass]]
    #: What `pip install` calls it, and what its Python must be able to import.
    package: ClassVar[str]
    module: ClassVar[str]
    #: Versions whose options and files this was written against.
    versions: ClassVar[str]
    #: Whether a run that was ended goes on where it was.
    resumes: ClassVar[bool] = False

    @property
    def variable(self) -> str:
        """The environment variable that names its Python."""
        return f"TIGHTFIT_{self.name.upper()}"

    def refuses(self, pass_: Pass) -> Reason | None:
        """Say why it cannot make a pass; None where it can."""
        if not isinstance(pass_, self.takes):
            return self.not_taken(pass_)
        taken: Any = pass_
        return self.refuses_options(taken)

    @abstractmethod
    def not_taken(self, pass_: Pass) -> Reason:
        """Say that a pass is none of the kind that it takes."""

    @abstractmethod
    def refuses_options(self, pass_: P) -> Reason | None:
        """Say why it cannot make a pass of the kind that it takes; None where it can."""

    @abstractmethod
    def needs_cuda(self, pass_: P) -> bool:
        """Return whether making this pass takes an NVIDIA card."""

    @abstractmethod
    def options(self, pass_: P) -> Mapping[str, Any]:
        """Return the pass in the tool's own words, as JSON values."""

    @abstractmethod
    def command(self, python: Path, task: Task[P]) -> Sequence[str]:
        """Return the program and its arguments."""

    @abstractmethod
    def progress(self, line: str) -> tuple[int, int] | None:
        """Read (done, total) from a line of output that tells it; None from any other."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that its process needs."""
        return {}

    def prepare(self, task: Task[P]) -> None:
        """Write what the tool reads besides the job file."""

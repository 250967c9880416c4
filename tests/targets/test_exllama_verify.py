"""`verify` of what ExLlama serves: its driver run by another Python on packages that hold no model, and TabbyAPI's part on a fake of it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from passes.errors import InputError
from targets.engines.engine import find_engine
from targets.engines.exllama.verify import DRIVER
from targets.quantity import Basis, Quantity
from targets.serve.load import Load
from targets.serve.process import EngineError
from targets.serve.soak import SoakRequest
from targets.serve.verifier import Observed, VerifyRequest
from targets.workload import Workload
from tests.targets.test_load import FAKE

_TORCH = """
class cuda:
    class OutOfMemoryError(RuntimeError):
        pass
    synchronize = empty_cache = staticmethod(lambda: None)

def randint(low, high, shape):
    return shape
"""
_EXLLAMA = """
import os
import torch
from .version import __version__

class ExLlamaV2Config:
    def __init__(self, model_dir):
        assert os.path.isdir(model_dir)

class ExLlamaV2:
    def __init__(self, config):
        self.config = config
    def load(self):
        pass
    def load_autosplit(self, cache):
        assert cache.lazy
    def forward(self, input_ids, cache, preprocess_only=False):
        assert input_ids[1] <= min(cache.max_seq_len, self.config.max_input_len)

class Cache:
    def __init__(self, model, max_seq_len, lazy=False):
        if max_seq_len > int(os.environ["FAKE_FITS"]):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.max_seq_len, self.lazy = max_seq_len, lazy

class ExLlamaV2Cache(Cache): pass
class ExLlamaV2Cache_Q8(Cache): pass
class ExLlamaV2Cache_Q6(Cache): pass
class ExLlamaV2Cache_Q4(Cache): pass

class ExLlamaV2Tokenizer:
    def __init__(self, config):
        pass
"""
_GENERATOR = """
import time

class ExLlamaV2Sampler:
    class Settings:
        greedy = staticmethod(lambda: None)

class ExLlamaV2DynamicJob:
    def __init__(self, input_ids, max_new_tokens, gen_settings):
        self.most, self.made = max_new_tokens, 0

class ExLlamaV2DynamicGenerator:
    def __init__(self, model, cache, tokenizer, max_batch_size, max_chunk_size, paged):
        self.jobs, self.most = [], max_batch_size
    def enqueue(self, job):
        self.jobs.append(job)
        assert len(self.jobs) <= self.most
    def num_remaining_jobs(self):
        return len(self.jobs)
    def iterate(self):
        time.sleep(0.002)
        results = [{"stage": "prefill", "eos": False, "job": job} for job in self.jobs if not job.made]
        for job in list(self.jobs):
            job.made += 1
            results.append({"stage": "streaming", "eos": job.made == job.most, "job": job})
            if job.made == job.most:
                self.jobs.remove(job)
                results[-1] |= {"new_tokens": job.made, "full_completion": "words"}
        return results
"""
#: What `apply` writes to start TabbyAPI, as the tests of launch files hold it.
_SCRIPT = Path(__file__).parents[1] / "launch" / "golden" / "exllamav2" / "run.sh"
_LOAD = Load(32, 12, 4, 16)
#: Tokens of cache that fit.
_FITS = 87_000


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Packages in the place of torch and ExLlamaV2, found by PYTHONPATH as those compiled in place are."""
    place = tmp_path / "site"
    package = place / "exllamav2"
    package.mkdir(parents=True)
    (place / "torch.py").write_text(_TORCH)
    (package / "__init__.py").write_text(_EXLLAMA)
    (package / "version.py").write_text('__version__ = "0.3.2"\n')
    (package / "attn.py").write_text("has_flash_attn_with_paged = True\n")
    (package / "generator.py").write_text(_GENERATOR)
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("FAKE_FITS", str(_FITS))
    yield package


@pytest.fixture
def asked(tmp_path: Path) -> VerifyRequest:
    launch = tmp_path / "made" / "launch"
    launch.mkdir(parents=True)
    settings = {
        "model_name": "made", "backend": "exllamav2", "max_seq_len": 2048, "cache_size": 8192, "cache_mode": "Q4", "chunk_size": 2048,
        "max_batch_size": 4,
    }  # fmt: skip
    (launch / "config.yml").write_text(yaml.safe_dump({"model": settings}))
    promised = Quantity(90_000, 80_000, 100_000, Basis.CALIBRATED)
    return VerifyRequest(tmp_path / "made", launch, Path(sys.executable), _LOAD, promised, 1)


def drive(request: VerifyRequest, engine: str = "exllamav2") -> Observed:
    verifier = find_engine(engine).verifier()
    assert verifier is not None
    return verifier.observe(request, lambda text: None)


@pytest.mark.usefixtures("packages")
def test_its_own_generator_answers_the_load_and_the_largest_cache_is_found(asked: VerifyRequest) -> None:
    seen = drive(asked)
    assert seen.kv_tokens is not None and _FITS * 0.99 < seen.kv_tokens <= _FITS
    [timing] = seen.loads
    assert (timing.tool, timing.load, timing.failed) == ("ExLlamaV2's generator", _LOAD, 0)
    assert 2 < timing.tpot_ms.median < 30 and timing.tok_s > 50
    assert (seen.version, seen.sample, seen.notes, seen.tells_cache) == ("0.3.2", "words", (), True)


def test_without_paged_attention_one_request_runs_at_a_time_and_that_is_said(
    packages: Path, asked: VerifyRequest
) -> None:
    (packages / "attn.py").write_text("has_flash_attn_with_paged = False\n")
    seen = drive(asked)
    assert seen.loads[0].load == replace(_LOAD, concurrency=1, requests=4)
    assert len(seen.notes) == 1 and "flash-attn" in seen.notes[0]
    assert drive(replace(asked, load=replace(_LOAD, concurrency=1, requests=3))).notes == ()


@pytest.mark.usefixtures("packages")
def test_its_generator_is_soaked_at_full_context_by_clients_that_wait(asked: VerifyRequest) -> None:
    full = Workload(2048, 4, 32, 12).filled
    seen = drive(replace(asked, soak=SoakRequest(full, 1.0)))
    assert seen.soaked is not None and seen.soaked.timing.load == Load(2036, 12, 4, 12)
    assert seen.soaked.watched.preemptions is None and seen.soaked.timing.failed == 0
    by_chance = drive(replace(asked, soak=SoakRequest(replace(full, rate=1.0), 1.0)))
    assert by_chance.soaked is None and "not soaked" in by_chance.notes[0]


@pytest.mark.usefixtures("packages")
def test_a_cache_of_the_launch_files_that_does_not_fit_is_told_with_what_does(
    asked: VerifyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FITS", "4400")
    with pytest.raises(EngineError, match=r"a cache of 8,192 tokens.* does not fit: 4,352 do"):
        drive(asked)


@pytest.mark.usefixtures("packages")
def test_over_several_cards_the_launch_files_cache_is_all_that_is_tried(asked: VerifyRequest) -> None:
    seen = drive(replace(asked, cards=2))
    assert seen.kv_tokens is None and not seen.tells_cache and len(seen.loads) == 1


@pytest.mark.usefixtures("packages")
def test_an_engine_that_fails_is_told_by_its_log(asked: VerifyRequest, packages: Path) -> None:
    (packages / "attn.py").write_text("raise ImportError('exllamav2_ext is missing')\n")
    with pytest.raises(EngineError, match="exllamav2_ext is missing"):
        drive(asked)


@pytest.mark.usefixtures("packages")
def test_requests_that_arrive_by_chance_are_refused(asked: VerifyRequest) -> None:
    with pytest.raises(InputError, match="clients that wait"):
        drive(replace(asked, load=replace(_LOAD, rate=1.0)))


@pytest.mark.usefixtures("packages")
def test_the_version_is_asked_without_the_package_being_loaded(packages: Path) -> None:
    (packages / "__init__.py").write_text("raise SystemExit('compiles for minutes')\n")
    verifier = find_engine("exllamav2").verifier()
    assert verifier is not None and verifier.installed(Path(sys.executable)).version == "0.3.2"


def test_its_python_is_named_as_for_its_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = find_engine("exllamav2").verifier()
    assert verifier is not None
    for variable in ("TIGHTFIT_ENGINE", "TIGHTFIT_EXLLAMAV2"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match="which Python has exllamav2") as refused:
        verifier.python(None)
    assert "TIGHTFIT_EXLLAMAV2" in str(refused.value.remedy)
    for name, variable in (("engine", "TIGHTFIT_ENGINE"), ("own", "TIGHTFIT_EXLLAMAV2")):
        (tmp_path / name).write_text("")
        monkeypatch.setenv(variable, str(tmp_path / name))
        assert verifier.python(None) == tmp_path / name
    assert verifier.python(Path(sys.executable)) == Path(sys.executable)


@pytest.fixture
def checkout(tmp_path: Path, asked: VerifyRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of a server that takes TabbyAPI's arguments, which the real launch script starts."""
    monkeypatch.setenv("TIGHTFIT_CHECK", "0")
    folder = tmp_path / "tabbyAPI"
    folder.mkdir()
    (folder / "main.py").write_text(
        "import os, sys\n"
        "assert sys.argv[-2:] == ['--disable-auth', 'true'] and '--model-name' in sys.argv, sys.argv\n"
        f"os.execv(sys.executable, [sys.executable, {str(FAKE)!r}, sys.argv[sys.argv.index('--port') + 1]])\n"
    )
    (asked.launch / "run.sh").write_text(_SCRIPT.read_text())
    return folder


@pytest.mark.usefixtures("packages")
def test_a_named_checkout_of_tabbyapi_is_driven_too(asked: VerifyRequest, checkout: Path) -> None:
    seen = drive(replace(asked, checkout=checkout))
    assert [timing.tool for timing in seen.loads] == ["ExLlamaV2's generator", "tightfit through TabbyAPI"]
    assert seen.loads[1].load == _LOAD and seen.loads[1].failed == 0 and seen.kv_tokens is not None
    soaked = drive(replace(asked, checkout=checkout, soak=SoakRequest(Workload(64, 2, 16, 8).filled, 0.1))).soaked
    assert soaked is not None and soaked.timing.load.requests >= 2 and soaked.watched.memory_bytes is not None


def test_exllamav3_is_driven_through_tabbyapi_alone(
    asked: VerifyRequest, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TIGHTFIT_TABBY", "TABBYAPI"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match="exllamav3 is driven through TabbyAPI"):
        drive(asked, "exllamav3")
    with pytest.raises(InputError, match=r"no checkout of TabbyAPI: it has no main\.py"):
        drive(replace(asked, checkout=asked.result), "exllamav3")
    monkeypatch.setenv("TIGHTFIT_TABBY", str(checkout))
    seen = drive(asked, "exllamav3")
    assert len(seen.loads) == 1 and not seen.tells_cache and seen.sample.startswith(" word")


@pytest.mark.parametrize("most", [0, 1, 7, 500, 4096])
def test_the_largest_that_fits_is_found_to_one_part_in_500(most: int) -> None:
    largest: Any = runpy.run_path(str(DRIVER))["largest"]
    tries: list[int] = []

    def fits(pages: int) -> bool:
        tries.append(pages)
        return pages <= most

    found = largest(fits, 8192)
    assert most - max(0, most // 250) <= found <= most and len(tries) < 16 and min(tries) > 0
    assert largest(lambda pages: True, 8192) >= 8192 * 0.996

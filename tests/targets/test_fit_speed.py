"""The fit of the speed model: what is stored is what the command writes, whatever machine it runs on."""

import json

import numpy as np
import pytest

from benchmarks.fit_speed import CPU, CPU_KERNELS, FIXED, cpu_cases, fit
from targets.speed.rates import FIT

STORED = json.loads(FIT.read_text())["engines"]


def test_constants_that_are_not_fitted_are_stored() -> None:
    assert STORED["vllm"]["values"].items() >= FIXED.items()


def test_the_processors_constants_are_those_of_the_machine_that_was_timed() -> None:
    stored = STORED["vllm-cpu"]["values"]
    found = fit(cpu_cases(), CPU, {name: value for name, value in stored.items() if name not in CPU} | CPU_KERNELS)
    assert {name: found.values()[name] for name in CPU} == pytest.approx({name: stored[name] for name in CPU}, rel=1e-3)


def test_no_constant_moves_where_no_steps_are_taken() -> None:
    stored = STORED["vllm-cpu"]["values"]
    kept = fit(cpu_cases(), CPU, stored, np.log([stored[name] for name in CPU]), steps=0)
    assert kept.values() == pytest.approx(stored)
    assert kept.without(np.array([0]))["memory"] != stored["memory"]

"""The allocator: optimal on every instance, never over budget, little work at the size of a 70B model."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.algorithms.knapsack import Unit, allocate
from passes.errors import DoesNotFitError, InputError

_OPTION = st.tuples(st.integers(0, 40), st.one_of(st.integers(0, 30).map(float), st.floats(-5, 5)), st.booleans())


def _units(raw):
    out = []
    for number, options in enumerate(raw):
        legal = [option[2] for option in options]
        legal[0] = True
        sizes, losses = tuple(o[0] for o in options), tuple(o[1] for o in options)
        out.append(Unit(f"u{number}", sizes, losses, tuple(legal)))
    return out


def _brute_force(units, budget):
    best = None
    for choice in itertools.product(*(range(len(u.bytes)) for u in units)):
        if all(u.legal is None or u.legal[j] for u, j in zip(units, choice, strict=True)):
            size = sum(u.bytes[j] for u, j in zip(units, choice, strict=True))
            loss = sum(u.losses[j] for u, j in zip(units, choice, strict=True))
            if size <= budget and (best is None or loss < best):
                best = loss
    return best


@settings(max_examples=400, deadline=None)
@given(raw=st.lists(st.lists(_OPTION, min_size=1, max_size=5), min_size=1, max_size=5), budget=st.integers(0, 150))
def test_equals_brute_force(raw, budget):
    units = _units(raw)
    best = _brute_force(units, budget)
    if best is None:
        with pytest.raises(DoesNotFitError):
            allocate(units, budget)
        return
    found = allocate(units, budget)
    assert found.bytes <= budget and found.gap == 0
    assert all(u.legal[j] for u, j in zip(units, found.choice, strict=True))
    assert found.loss <= best + found.tolerance + 1e-9


def test_losses_too_small_for_a_quantum_are_told_apart():
    found = allocate(_units([[(0, 2.2250738585e-313, True), (0, 0.0, True)]]), 0)
    assert found.choice == (1,) and found.gap == 0


def _dynamic_program(units, budget):
    """Least loss for every number of bytes: the textbook table."""
    table = np.zeros(budget + 1)
    for unit in units:
        fresh = np.full(budget + 1, np.inf)
        for size, loss in zip(unit.bytes, unit.losses, strict=True):
            if size <= budget:
                fresh[size:] = np.minimum(fresh[size:], table[: budget + 1 - size] + loss)
        table = fresh
    return table[budget]


@pytest.mark.parametrize("seed", range(8))
def test_equals_a_table_on_large_cases(seed):
    rng = random.Random(seed)
    units = []
    for number in range(60):
        sizes = sorted(rng.randint(1, 300) for _ in range(12))
        losses = sorted((rng.random() ** 3 for _ in sizes), reverse=True)
        units.append(Unit(str(number), tuple(sizes), tuple(losses)))
    budget = rng.randint(sum(u.bytes[0] for u in units), sum(u.bytes[-1] for u in units))
    found = allocate(units, budget)
    assert found.gap == 0 and found.bytes <= budget
    assert found.loss == pytest.approx(_dynamic_program(units, budget), rel=1e-9)


def _seventy_b(seed, noise):
    """80 layers × (attention, MLP) with 19 options: bytes about bits × weights, losses fall fourfold a bit."""
    rng = random.Random(seed)
    units = []
    for layer in range(80):
        for kind, weights in (("attn", 151_000_000), ("mlp", 704_000_000)):
            level, steep = rng.lognormvariate(0, 1), rng.uniform(3, 5)
            bits = [2.14 + 0.33 * j for j in range(19)]
            sizes = tuple(int(weights * b / 8) + rng.randint(0, noise) for b in bits)
            losses = tuple(level * steep ** (-b) * rng.uniform(0.8, 1.2) for b in bits)
            units.append(Unit(f"{layer}.{kind}", sizes, losses))
    return units


@pytest.mark.parametrize(("seed", "noise"), [(0, 0), (1, 0), (2, 100_000), (3, 100_000)])
@pytest.mark.parametrize("bpw", [2.4, 3.5, 4.65, 6.0])
def test_a_seventy_b_model_keeps_few_states(seed, noise, bpw):
    """The time goes with the longest list of states; `benchmarks/plan_speed.py` measures the seconds."""
    units = _seventy_b(seed, noise)
    budget = int(bpw * 80 * 855_000_000 / 8)
    found = allocate(units, budget)
    assert found.gap == 0 and found.bytes <= budget
    assert found.states < 5000
    assert found == allocate(units, budget)


def test_what_cannot_be_allocated_says_why():
    with pytest.raises(DoesNotFitError, match="budget is 3"):
        allocate([Unit("a", (4,), (0.0,))], 3)
    with pytest.raises(InputError, match="no legal option"):
        allocate([Unit("a", (4,), (0.0,), (False,))], 9)
    with pytest.raises(InputError, match="nan"):
        allocate([Unit("a", (4,), (float("nan"),))], 9)


def test_nothing_to_allocate_costs_nothing():
    assert allocate([], 0).choice == ()

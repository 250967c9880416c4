"""The contract of a pass: one that answers only what it must goes through a chain, a prediction and a plan's JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from passes import chain
from passes.algorithms.method import Gptq, RoundToNearest
from passes.base import NATIVE, Pass, Stage
from passes.errors import Reason
from passes.ir.model import ModelIR, remembered
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.sparse import Sparsify
from passes.quantize.format_names import examples, pass_named
from passes.registry import Registry
from passes.steps.cost import WalkSize
from planner.quality.expected import expected_quality


@dataclass(frozen=True)
class Shuffle(Pass):
    """A pass of another package, with the two answers that it must give."""

    name: ClassVar[str] = "shuffle"
    stage: ClassVar[Stage] = Stage.PRUNE
    seed: int = 0

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        return ir


@pytest.fixture(scope="module")
def ir() -> ModelIR:
    return open_model("Llama-3-8B").ir


def test_two_answers_make_a_pass(ir: ModelIR) -> None:
    passes = (Shuffle(3),)
    assert chain.illegal(ir, passes) == () and chain.missing(ir, passes) == ()
    assert not chain.needs_text(passes, chain.rewrite(ir, passes)) and chain.method(passes) == RoundToNearest()
    assert expected_quality(ir, passes).log_ppl_increase.value == 0
    assert not passes[0].cost(ir, WalkSize(8, 64)) and not list(Shuffle.degrees(ir))
    assert (passes[0].title(), passes[0].text()) == ("shuffle seed=3", "shuffle{seed=3}")


def test_options_are_replaced_by_name_and_foreign_ones_passed_over() -> None:
    assert Shuffle(3).with_options(seed=4, damping=0.1) == Shuffle(4)


def test_a_pass_of_another_package_is_read_from_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "PASSES", Registry("pass", {"shuffle": f"{__name__}:Shuffle"}, "tightfit.passes"))
    assert chain.from_json(chain.to_json((Shuffle(3),))) == (Shuffle(3),)


@pytest.mark.parametrize("name", chain.PASSES.names())
def test_the_table_has_each_pass_under_its_name(name: str) -> None:
    kind = chain.PASSES.find(name)
    assert kind.name == name and kind.stage in Stage


@pytest.mark.parametrize("name", chain.BACKENDS.names())
def test_the_table_has_each_tool_under_its_name(name: str) -> None:
    tool = chain.find_backend(name)
    assert tool.name == name and tool.takes in map(chain.PASSES.find, chain.PASSES.names())


def test_zeros_go_into_the_loop_of_the_method_after_them() -> None:
    sparse, gptq = Sparsify("wanda", 0.5, "2:4"), pass_named("w4a16-g128")
    assert gptq is not None
    algorithm = chain.method((sparse, gptq.with_options(damping=0.1), KVCachePass("fp8")))
    assert isinstance(algorithm, Gptq) and algorithm.mask == sparse.mask and algorithm.options.damping == 0.1
    assert chain.method((gptq.with_options(backend="gptqmodel"),)) == RoundToNearest(), "a tool has its own method"


@pytest.mark.parametrize(
    "pass_",
    [*filter(None, map(pass_named, examples())), Sparsify("wanda", 0.5), KVCachePass("fp8"), Shuffle()],
    ids=str,
)
def test_whether_an_algorithm_reads_inputs_is_told_without_loading_it(pass_: Pass) -> None:
    if pass_.backend == NATIVE:
        assert pass_.reads_inputs == pass_.algorithm(RoundToNearest()).needs_hessian


def test_what_is_remembered_of_a_description_is_its_own(ir: ModelIR) -> None:
    calls = []

    @remembered
    def longest(ir: ModelIR, factor: int) -> int:
        calls.append(factor)
        return factor * int(ir.config["max_position_embeddings"])

    other = replace(ir, config={**ir.config, "max_position_embeddings": 3})
    assert other == ir and hash(other) == hash(ir), "the config takes no part in equality"
    assert (longest(ir, 2), longest(ir, 2), longest(other, 2)) == (2 * 8192, 2 * 8192, 6)
    assert calls == [2, 2]

"""A block whose last matrix takes back what is missing behind it: only what text it was not fitted to confirms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from passes.algorithms.removal.error_fit import ErrorMoments, correction
from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import Checkpoint
from passes.ir.sources import open_model
from passes.measure.evaluate import evaluate
from passes.prune import narrow
from passes.prune.width import WidthPrune
from tests.walk.conftest import context, save_family

TEXT = torch.randint(3, 250, (40, 32), generator=torch.Generator().manual_seed(1))


def moments(x_TK: torch.Tensor, e_TN: torch.Tensor) -> ErrorMoments:
    sums = ErrorMoments.zeros(e_TN.shape[1], x_TK.shape[1], x_TK.device)
    sums.add(x_TK, e_TN)
    return sums


def test_an_error_that_the_inputs_tell_is_taken_back() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TK, wanted = torch.randn(400, 24, generator=generator), torch.randn(10, 24, generator=generator)
    e_TN = x_TK @ wanted.T
    change = correction(moments(x_TK[:300], e_TN[:300]), moments(x_TK[300:], e_TN[300:]))
    assert change is not None and torch.allclose(change, wanted, atol=0.1)
    assert moments(x_TK, e_TN).taken_off(change) == pytest.approx(
        float(e_TN.square().sum() - (e_TN - x_TK @ change.T).square().sum()), rel=1e-4
    )


def test_noise_is_left_alone_and_little_text_is_damped_more() -> None:
    generator = torch.Generator().manual_seed(0)
    x_TK, noise = torch.randn(80, 64, generator=generator), torch.randn(80, 10, generator=generator)
    told = x_TK @ torch.randn(64, 10, generator=generator) / 8 + noise
    assert correction(moments(x_TK[:70], -noise[:70]), moments(x_TK[70:], x_TK[70:] @ torch.ones(64, 10) * 0)) is None
    change = correction(moments(x_TK[:60], told[:60]), moments(x_TK[60:], told[60:]))
    undamped = torch.linalg.lstsq(x_TK, told).solution.T
    assert change is not None and float(change.norm()) < 0.8 * float(undamped.norm())


def loss(pass_: WidthPrune, dense: DenseModel, place: Path) -> float:
    """KL on text that was not seen."""
    place.mkdir()
    made = pass_.dense(dense, context(place, TEXT[:32]))
    return evaluate(dense, made, context(place / "judged", TEXT[32:])).kl


def test_blocks_that_follow_the_source_lose_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family("llama", tmp_path / "source", torch.float32)
    dense = DenseModel(open_model(folder).ir, Checkpoint(folder), ("source",))
    pass_ = WidthPrune(96)
    following = loss(pass_, dense, tmp_path / "following")
    assert following < loss(replace(pass_, compensate=False), dense, tmp_path / "raw")
    assert not list((tmp_path / "following").rglob("targets"))
    monkeypatch.setattr(narrow, "last_matrix", lambda block: None)
    assert following < loss(pass_, dense, tmp_path / "alone")


def test_a_norm_behind_the_matrix_makes_nothing_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family("gemma3_text", tmp_path / "source", torch.float32)
    dense = DenseModel(open_model(folder).ir, Checkpoint(folder), ("source",))
    following = loss(WidthPrune(64), dense, tmp_path / "following")
    monkeypatch.setattr(narrow, "last_matrix", lambda block: None)
    assert following <= 1.02 * loss(WidthPrune(64), dense, tmp_path / "alone")

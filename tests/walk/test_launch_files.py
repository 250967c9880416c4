"""`launch:` of a spec: its files lie beside the engine's own in a result, or nothing is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.walk.conftest import TINY_SPEC
from tests.walk.test_kept import folder, optimize

__all__ = ["folder"]


@pytest.mark.slow
def test_apply_writes_the_targets_that_the_spec_lists(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(TINY_SPEC + "launch: [compose, kubernetes]\n")
    done = optimize(folder, "apply", "tiny.yaml")
    assert done.returncode in (0, 4), done.stderr
    launch = folder / "tiny-tightfit" / "launch"
    assert {path.name for path in launch.iterdir()} == {"vllm.yaml", "run.sh", "compose.yaml", "kubernetes.yaml"}
    compose = yaml.safe_load((launch / "compose.yaml").read_text())
    assert compose["services"]["server"]["volumes"] == [f"${{MODEL:-{launch.parent}}}:/models/tiny-tightfit:ro"]


def test_what_a_target_cannot_run_is_refused_before_any_work(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(TINY_SPEC + "launch: [compose, script]\n")
    done = optimize(folder, "apply", "tiny.yaml")
    assert done.returncode == 2 and "by its server" in done.stderr
    assert not list(folder.glob(".tiny-tightfit*")) and not (folder / "tiny-tightfit").exists()

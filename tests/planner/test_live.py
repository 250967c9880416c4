"""`check --live` on machines whose driver answers as real ones do: what is free, who holds the rest, and what that means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from passes.ir import catalog
from targets.launch.before_start import look_first
from targets.machine import live
from tests.stand_in_nvml import GIB, MIB, Card, Library, install

MODEL = ("--model", "llama-3.1-8b", "--context", "8192")


def rtx4090(**facts: Any) -> Card:
    return Card("NVIDIA GeForce RTX 4090", 24564 * MIB, **{"free": 24100 * MIB, **facts})


def h100(number: int = 0, **facts: Any) -> Card:
    given = {
        "free": 80995 * MIB,
        "uuid": f"GPU-{number}",
        "capability": (9, 0),
        "ecc": 1,
        "links": 18,
        "pcie": (5, 16, 5, 16),
        **facts,
    }
    return Card("NVIDIA H100 80GB HBM3", 81559 * MIB, **given)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, optimize: Any) -> Any:
    def run(cards: list[Card], *arguments: object, **facts: Any) -> tuple[int, dict[str, Any]]:
        install(monkeypatch, Library(cards, **facts))
        code, out, _ = optimize("check", "--live", "--json", *arguments)
        return code, json.loads(out)

    return run


def codes(document: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in document["reasons"]]


def test_a_free_card_says_yes_and_what_it_is(check: Any) -> None:
    code, document = check([rtx4090()], *MODEL)
    assert (code, document["fits"], document["gpu"]) == (0, True, "RTX 4090")
    machine = document["machine"]
    assert (machine["driver"], machine["cuda"]) == ("570.172.08", "12.8")
    card = machine["cards"][0]
    assert (card["total_bytes"], card["free_bytes"], card["capability"]) == (24564 * MIB, 24100 * MIB, "8.9")
    assert card["pcie"] == "PCIe 4.0 x16"


def test_other_processes_are_named_with_their_bytes_and_how_it_goes(check: Any) -> None:
    held = rtx4090(free=18 * GIB, processes=((os.getppid(), 5 * GIB),), drawing=((os.getppid(), 5 * GIB),))
    code, document = check([held], *MODEL)
    assert (code, document["fits"], document["starts"]) == (3, False, False)
    reason = document["reasons"][0]
    assert reason["code"] == "not_enough_free"
    assert "5.0 GiB" in reason["message"] and str(os.getppid()) in reason["message"]
    assert "--gpu-memory-utilization 0.7" in reason["remedy"]


def test_what_does_not_fit_beside_others_says_what_would(check: Any) -> None:
    _, document = check([rtx4090(free=10 * GIB)], *MODEL)
    reason = document["reasons"][0]
    assert "stop what holds it" in reason["remedy"]
    assert "does not name" in reason["message"]


def test_less_of_the_card_is_taken_at_its_word(check: Any) -> None:
    code, _ = check([rtx4090(free=20 * GIB)], *MODEL, "--gpu-memory-utilization", "0.8")
    assert code == 0


def test_a_cache_of_so_many_bytes_is_asked_for_whole(check: Any) -> None:
    """The engine takes what it is told, not what one request of this context would need of it."""
    bytes_ = ("--kv-cache-memory", 5 * GIB)
    assert check([rtx4090(free=19 * GIB)], *MODEL, *bytes_)[0] == 3
    assert check([rtx4090()], *MODEL, *bytes_)[0] == 0


def test_cards_that_are_not_there_are_said(check: Any) -> None:
    code, document = check([h100()], *MODEL, "--tp", "2")
    assert (code, codes(document)[0]) == (3, "too_few_cards")


def test_cards_that_are_hidden_are_not_used(check: Any, monkeypatch: pytest.MonkeyPatch, optimize: Any) -> None:
    install(monkeypatch, Library([rtx4090(), h100(1)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    _, out, _ = optimize("check", "--live", "--json", *MODEL)
    document = json.loads(out)
    assert (document["gpu"], document["machine"]["hidden"]) == ("H100 SXM", 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert optimize("check", "--live", *MODEL)[0] == 2


def test_unlike_cards_count_as_the_smallest(check: Any) -> None:
    small = Card("NVIDIA GeForce RTX 3060", 12288 * MIB, 12000 * MIB, capability=(8, 6))
    code, document = check([rtx4090(), small], "--model", "Qwen/Qwen2.5-7B-Instruct", "--context", "4096", "--tp", "2")
    assert document["gpu"].startswith("RTX 3060")
    assert any("unlike cards" in note for note in document["notes"])
    assert code in (0, 3)


def test_slices_are_cards_of_their_own_and_do_not_join(check: Any) -> None:
    part = Card("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40192 * MIB, 40000 * MIB, uuid="MIG-1", capability=(8, 0))
    whole = Card("NVIDIA A100-SXM4-80GB", 81920 * MIB, 500 * MIB, capability=(8, 0), slices=(part, part))
    code, document = check([whole], *MODEL)
    assert (code, len(document["machine"]["cards"])) == (0, 2)
    assert document["machine"]["cards"][0]["is_slice"]
    code, document = check([whole], *MODEL, "--tp", "2")
    assert (code, codes(document)[0]) == (3, "slices_do_not_join")


def test_links_screens_and_lanes_are_said(check: Any) -> None:
    _, document = check([rtx4090(display=1, pcie=(4, 4, 4, 16)), rtx4090(uuid="GPU-2")], *MODEL, "--tp", "2")
    said = " ".join(document["notes"])
    assert "drives a screen" in said and "PCIe 4.0 x4 of PCIe 4.0 x16" in said and "no NVLink" in said
    _, document = check([h100(0), h100(1)], *MODEL, "--tp", "2")
    assert "no NVLink" not in " ".join(document["notes"])
    assert document["machine"]["cards"][0]["links"] == 18 and document["machine"]["cards"][0]["ecc"]


def test_a_driver_too_old_for_the_wheel_is_said(check: Any) -> None:
    assert "built for CUDA 13" in " ".join(check([rtx4090()], *MODEL)[1]["notes"])
    assert "built for CUDA" not in " ".join(check([rtx4090()], *MODEL, "--engine-version", "0.11.0")[1]["notes"])


def test_a_card_in_the_machines_memory_has_what_is_free_there(check: Any) -> None:
    code, document = check([Card("NVIDIA GB10", 0, 0, capability=(12, 1), own_memory=False)], *MODEL)
    assert document["machine"]["cards"][0]["total_bytes"] == document["machine"]["memory_bytes"]
    assert code in (0, 3)


def test_a_card_that_no_list_has_is_taken_at_its_memory(check: Any) -> None:
    code, document = check([Card("NVIDIA Unheard Of", 48 * GIB, 47 * GIB)], *MODEL)
    assert (code, document["gpu"]) == (0, "NVIDIA Unheard Of")


def test_windows_linux_is_said(check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel = tmp_path / "osrelease"
    kernel.write_text("5.15.167.4-microsoft-standard-WSL2\n")
    monkeypatch.setattr(live, "_KERNEL", kernel)
    _, document = check([rtx4090()], *MODEL)
    assert document["machine"]["wsl"] and "WSL" in " ".join(document["notes"])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded"), (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "two versions"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "may not be asked"), (pynvml.NVML_ERROR_UNKNOWN, "nvidia-smi"),
    ],
)  # fmt: skip
def test_a_broken_driver_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch, optimize: Any, error: int, says: str
) -> None:
    install(monkeypatch, Library([], fails=error))
    code, _, err = optimize("check", "--live", *MODEL)
    assert code == 2
    assert says in err and err.count("error:") == 1 and "Traceback" not in err


def test_no_driver_is_one_clear_message(monkeypatch: pytest.MonkeyPatch, optimize: Any) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", _none)
    code, _, err = optimize("check", "--live", *MODEL)
    assert code == 2
    assert "no NVIDIA driver" in err


def _none(name: str) -> None:
    raise OSError(name)


def test_amds_cards_are_seen(monkeypatch: pytest.MonkeyPatch, optimize: Any) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", _none)
    monkeypatch.setitem(sys.modules, "amdsmi", StandInAmd())  # type: ignore[arg-type]
    code, out, _ = optimize("check", "--live", "--json", *MODEL)
    document = json.loads(out)
    assert (code, document["gpu"], document["modelled"]) == (6, "MI300X", False)
    assert document["machine"]["maker"] == "AMD"


class StandInAmd:
    """What amdsmi 7 answers for one MI300X."""

    class AmdSmiException(Exception):  # noqa: N818 (its own name)
        pass

    class AmdSmiMemoryType:
        VRAM = 0

    def __getattr__(self, name: str) -> Any:
        answers = {
            "amdsmi_init": None, "amdsmi_get_processor_handles": ["a"], "amdsmi_get_gpu_asic_info": {"market_name": "AMD Instinct MI300X"},
            "amdsmi_get_gpu_memory_total": 192 * GIB, "amdsmi_get_gpu_memory_usage": GIB, "amdsmi_get_gpu_process_list": [],
            "amdsmi_get_gpu_device_uuid": "00-1",
        }  # fmt: skip
        return lambda *arguments: answers[name]


def test_the_machine_is_shown_to_people(monkeypatch: pytest.MonkeyPatch, optimize: Any) -> None:
    install(monkeypatch, Library([rtx4090(processes=((os.getppid(), 2 * GIB),))]))
    code, out, _ = optimize("check", "--live", *MODEL, "--gpu-memory-utilization", "0.8")
    assert code == 0
    assert "card 0: NVIDIA GeForce RTX 4090" in out and "holds 2.0 GiB" in out


def test_without_a_named_card_this_machines_is_meant(monkeypatch: pytest.MonkeyPatch, optimize: Any) -> None:
    install(monkeypatch, Library([rtx4090()]))
    code, out, _ = optimize("check", "--json", *MODEL)
    assert (code, json.loads(out)["gpu"]) == (0, "RTX 4090")


def test_this_machines_processor_is_looked_at(optimize: Any) -> None:
    code, out, _ = optimize(
        "check",
        "--live",
        "--json",
        "--gpu",
        "cpu",
        "--engine",
        "vllm-cpu",
        "--model",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "--context",
        "512",
    )
    document = json.loads(out)
    assert document["machine"]["cores"] > 0
    assert code in (0, 3)


@pytest.fixture
def result(optimize: Any, tmp_path: Path) -> Path:
    """A folder as `apply` leaves it, of a model that is served as it is."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: RTX 4090 }\nengine: vllm\nworkload: { context: 8192 }\n"
    )
    folder = tmp_path / "result"
    assert optimize("plan", spec, "-o", folder / "plan.json")[0] == 0
    config = catalog.entry("Qwen/Qwen2.5-7B-Instruct").config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_plan_and_a_result_are_held_against_this_machine(check: Any, result: Path) -> None:
    for what in (result, result / "plan.json"):
        assert check([rtx4090()], what)[0] == 0
        code, document = check([rtx4090(free=8 * GIB)], what)
        assert (code, codes(document)[0]) == (3, "not_enough_free")
        small = Card("NVIDIA GeForce RTX 3060", 12288 * MIB, 12000 * MIB, capability=(8, 6))
        assert check([small], what)[0] == 3


def test_a_launch_script_looks_first_and_can_be_told_not_to(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(f"set -euo pipefail\n{look_first('.')}echo started\n")
    program = tmp_path / "optimize"
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(code: int, **environment: str) -> subprocess.CompletedProcess[str]:
        program.write_text(f'#!/bin/sh\necho told "$@"\nexit {code}\n')
        program.chmod(0o755)
        return subprocess.run(
            ["bash", str(script)],
            capture_output=True,
            text=True,
            env={**os.environ, **path, **environment},
            check=False,
        )

    assert (run(0).returncode, run(0).stdout) == (0, "started\n")
    stopped = run(3)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (3, "", "told check --live .\n")
    assert run(2).stdout == "started\n"
    assert run(3, TIGHTFIT_CHECK="0").stdout == "started\n"

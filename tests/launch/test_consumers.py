"""Every launch file of every scenario is read by its own consumer: Docker Compose, Kubernetes' schemas, Ray, SkyPilot, Dynamo, Podman's
generator, ExLlama.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from planner.plan.launch import every_target, target_files
from targets.launch.write import write_files
from tests.conftest import missing
from tests.golden.test_scenarios import SCENARIOS, server

_BACKENDS = Path(os.environ.get("TIGHTFIT_BACKENDS") or Path.home() / ".cache" / "tightfit" / "backends").expanduser()
_FILES = (
    "compose.yaml", "kubernetes.yaml", "production-stack.values.yaml", "kserve.yaml", "llm-d.values.yaml", "dynamo.yaml",
    "ray-serve.yaml", "kuberay.yaml", "skypilot.yaml",
)  # fmt: skip


def environment(name: str) -> Path:
    python = _BACKENDS / name / "bin" / "python"
    if not python.exists():
        missing(f"no consumers of launch files at {python}", "`make backends` installs them")
    return python


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What each consumer says, by scenario and file: one process imports them all."""
    folder = tmp_path_factory.mktemp("launch")
    for name in SCENARIOS:
        write_files(folder / name, every_target(server(name))[0])
    script = Path(__file__).with_name("real_consumers.py")
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(environment("launch")), str(script), str(folder)],
        capture_output=True, text=True, check=False, timeout=300, env=kept | {"HOME": str(folder), "PORT": "8001"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.slow
@pytest.mark.parametrize("file", _FILES)
def test_no_consumer_refuses_a_file(file: str, answers: dict[str, str | None]) -> None:
    read = {path: error for path, error in answers.items() if path.endswith(f"/{file}")}
    assert len(read) >= 10 and not {path: error for path, error in read.items() if error}


@pytest.mark.slow
def test_a_consumer_refuses_a_file_that_is_wrong(tmp_path: Path) -> None:
    """Each is caught at one wrong key or type: the consumers above do read."""
    wrong = {
        "compose": ("capabilities:", "capability:"), "kubernetes": ("containerPort: 8000", "containerPort: x"),
        "skypilot": ("num_nodes:", "nodes:"), "ray-serve": ("model_loading_config:", "model_loading:"),
        "kuberay": ("mountPath:", "mount:"), "dynamo": ("podTemplate:", "template:"), "kserve": ("sizeLimit", "size"),
        "production-stack": ("requestCPU:", "requestCpu:"), "llm-d": ("modelArtifacts:", "artifacts:"),
    }  # fmt: skip
    for target, (right, other) in wrong.items():
        deployment = server(
            "21-h100x16-405b-bf16" if target in ("skypilot", "ray-serve", "kuberay", "dynamo") else "13-h100-70b-fp8"
        )
        [file] = target_files(deployment, [target])
        text = file.text.replace(right, other) if right in file.text else file.text.replace("name: main", "nam: main")
        assert text != file.text, target
        (tmp_path / file.path).write_text(text)
    script = Path(__file__).with_name("real_consumers.py")
    done = subprocess.run(
        [str(environment("launch")), str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == len(wrong) and all(said.values()), said


def unit_of(quadlet: Path) -> tuple[str, str]:
    """The unit that Podman's generator makes of a Quadlet, and what it says."""
    generator = _BACKENDS / "quadlet" / "quadlet"
    if not generator.exists():
        missing(f"no generator of Podman's at {generator}", "`make backends` unpacks it")
    made = subprocess.run(
        [generator, "-dryrun"],
        env={"QUADLET_UNIT_DIRS": str(quadlet.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    _, _, unit = made.stdout.partition("---\n")  # `---NAME.service---` stands before it
    said = "\n".join(line for line in made.stderr.splitlines() if "Loading source unit file" not in line)
    return unit, said


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_podman_s_generator_makes_a_unit_of_every_quadlet(name: str, tmp_path: Path) -> None:
    """Without a word: no key that Podman lacks, no image that two registries may have. systemd accepts what it makes."""
    quadlets = [file for file in every_target(server(name))[0] if file.path.endswith(".container")]
    for file in quadlets:
        (tmp_path / file.path).write_text(file.text)
        unit, said = unit_of(tmp_path / file.path)
        assert said == "" and "ExecStart=/usr/bin/podman run " in unit
        command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
        for told in ("--health-start-period", "--shm-size", "--publish", "--max-model-len"):
            assert told in command, command
        if shutil.which("systemd-analyze") is None:
            missing("no systemd-analyze here", "it comes with systemd")
        service = tmp_path / f"{Path(file.path).stem}.service"
        service.write_text(unit.replace("/usr/bin/podman", "/usr/bin/env"))  # that Podman is there is not asked
        read = subprocess.run(["systemd-analyze", "verify", service], capture_output=True, text=True, check=False)
        assert (read.returncode, read.stderr) == (0, "")
    assert bool(quadlets) != ("exllama" in server(name).request.engine or server(name).hardware.nodes > 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("ShmSize=", "ShmSizes=", "unsupported key 'ShmSizes'"),
        ("Image=", "Picture=", "unsupported key 'Picture'"),
        ("Image=docker.io/", "Image=", "not a fully qualified image name"),
    ],
)
def test_podman_s_generator_finds_what_is_wrong_in_a_quadlet(
    right: str, wrong: str, complaint: str, tmp_path: Path
) -> None:
    [file] = target_files(server("13-h100-70b-fp8"), ["quadlet"])
    assert right in file.text
    (tmp_path / file.path).write_text(file.text.replace(right, wrong))
    assert complaint in unit_of(tmp_path / file.path)[1]


def parameters(path: Path, name: str) -> set[str]:
    """What a class's constructor takes, read from a package's source."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    [found] = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    [init] = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return {each.arg for each in (*init.args.args, *init.args.kwonlyargs)} | ({"*"} if init.args.kwarg else set())


@pytest.mark.parametrize(
    ("name", "package", "classes"),
    [
        ("07-3090-exl2-13b", "exllamav2", {"ExLlamaV2DynamicGenerator": "generator/dynamic.py"}),
        ("06-3090-chat-32b", "exllamav3", {"Generator": "generator/generator.py", "Cache": "cache/cache.py"}),
    ],
)
def test_a_program_calls_its_package_as_its_source_is_written(name: str, package: str, classes: dict[str, str]) -> None:
    [program] = target_files(server(name), ["script"])
    tree = ast.parse(program.text)
    source = next((environment("tools").parents[1] / "lib").glob("python3.*/site-packages")) / package
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes:
            known = parameters(source / classes[node.func.id], node.func.id)
            assert {str(each.arg) for each in node.keywords} <= known or "*" in known
    imported = {each.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for each in node.names}
    exported = "".join(path.read_text(encoding="utf-8") for path in source.rglob("__init__.py"))
    assert all(each in exported for each in imported if each not in ("Path",))

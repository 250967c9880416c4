"""Launch targets: written from an engine's launch, found by name, added by other packages, refused where they cannot run a server."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml

from passes.errors import InputError
from planner.documents.schema import schema
from planner.plan.launch import ALL, deployed, every_target, target_files
from planner.plan.make import plan
from planner.plan.saved import save
from planner.spec.parse import as_spec, parse_spec
from targets.launch.commented import Said, commented, plain
from targets.launch.deployment import Deployment
from targets.launch.request import Hardware
from targets.launch.target import LAUNCH_TARGETS, find_launch_target
from tests.conftest import missing
from tests.golden.test_scenarios import SCENARIOS, SPECS, server
from tests.planner.conftest import run
from tests.planner.test_documents import refused

_TARGET = """
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget


class Toy(LaunchTarget):
    name = "toy"

    def files(self, deployment):
        return (LaunchFile("toy.txt", " ".join(deployment.command)),)
"""
_MADE, _AS_IS, _TWO_MACHINES = "06-3090-chat-32b", "05-4090-code-completion", "21-h100x16-405b-bf16"


def units(deployment: Deployment) -> str:
    [unit] = target_files(deployment, ["systemd"])
    return unit.text


def test_a_unit_runs_the_results_own_script() -> None:
    made = server(_MADE)
    place = Path("/srv/my models/50 %/small")
    made = replace(made, served=replace(made.served, folder=place), request=replace(made.request, served_name="Small"))
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(units(made))
    assert parser["Service"]["ExecStart"] == '"/srv/my models/50 %%/small/launch/run.sh"'
    assert f"PORT={made.launch.port}" in parser["Service"]["Environment"]


@pytest.mark.parametrize("name", [name for name in SCENARIOS if "nodes" not in SPECS[name]["target"]])
def test_systemd_accepts_every_unit(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("no systemd-analyze here", "it comes with systemd")
    script = tmp_path / "result" / "launch" / "run.sh"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    deployment = server(name)
    if deployment.folder is not None:
        deployment = replace(deployment, served=replace(deployment.served, folder=tmp_path / "result"))
    unit = tmp_path / f"{deployment.name}.service"
    unit.write_text(units(deployment))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "package"), [(_MADE, "exllamav3"), ("07-3090-exl2-13b", "exllamav2")])
def test_a_program_runs_to_its_end(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a stand-in of its package."""
    [program] = target_files(server(name), ["script"])
    for module in (package, f"{package}.generator"):
        monkeypatch.setitem(sys.modules, module, MagicMock())
    monkeypatch.setattr(sys, "argv", [program.path, "Hello", "5"])
    exec(compile(program.text, program.path, "exec"), {})
    assert "generate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "means"),
    [("docker", "'compose'"), ("docker-compose", "'compose'"), ("k8s", "'kubernetes'"), ("podman", "'quadlet'"),
     ("systemctl", "'systemd'"), ("helm", "'production-stack' or 'llm-d'"), ("Ray", "'ray-serve' or 'kuberay'")],
)  # fmt: skip
def test_words_that_people_use_for_a_target_name_it(typed: str, means: str) -> None:
    with pytest.raises(InputError) as caught:
        find_launch_target(typed)
    assert f"Did you mean {means}?" in caught.value.message


def test_every_word_for_a_target_means_one_that_is_there() -> None:
    words = LAUNCH_TARGETS.meant
    assert words and {target for each in words.values() for target in each} <= set(LAUNCH_TARGETS.names())
    assert not set(words) & set(LAUNCH_TARGETS.names())


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="launch target 'sytemd'") as caught:
        find_launch_target("sytemd")
    assert "systemd" in f"{caught.value.message} {caught.value.remedy}"


@pytest.mark.parametrize(
    ("name", "target", "said", "remedy"),
    [
        (_TWO_MACHINES, "compose", "16 cards of 2", "kuberay"),
        (_TWO_MACHINES, "kubernetes", "16 cards of 2", "kuberay"),
        (_MADE, "compose", "no image of exllamav3", "systemd"),
        (_AS_IS, "script", "by its server", "compose"),
        ("22-processor-135m", "llm-d", "runs on a processor", "kubernetes"),
        ("20-h200x16-deepseek-r1", "ray-serve", "spreads experts", "skypilot"),
    ],
)
def test_a_target_that_cannot_run_a_server_names_some_that_can(name: str, target: str, said: str, remedy: str) -> None:
    deployment = server(name)
    if target == "ray-serve":
        parallel = replace(deployment.request.settings.parallel, dp=2, ep=16)
        settings = replace(deployment.request.settings, parallel=parallel)
        deployment = replace(deployment, request=replace(deployment.request, settings=settings))
    with pytest.raises(InputError, match=said) as caught:
        target_files(deployment, [target])
    named = str(caught.value.remedy).partition(": ")[2].split(", ")
    assert remedy in named
    assert all(target_files(deployment, [other]) for other in named if other != "engine")


def told_by(arguments: list[str]) -> set[str]:
    """What a server is told, each `--name=value`, but for where it listens."""
    words = [word for each in arguments for word in each.partition("=")[::2] if word]
    flags: dict[str, str] = {}
    for word in words:
        if word.startswith("--"):
            name = word
            flags[name] = ""
        elif flags:
            flags[name] = word
    return {f"{name.replace('_', '-')}={value}" for name, value in flags.items() if name not in ("--host", "--port")}


@pytest.mark.parametrize("name", SCENARIOS)
def test_charts_tell_the_server_what_kubernetes_does(name: str) -> None:
    """By what their templates write: production-stack's deployment-vllm-multi.yaml (f1f98227), llm-d's vllmServeModelCommand (6ab49a0e)."""
    deployment = server(name)
    if deployment.hardware.nodes > 1 or not deployment.hardware.of_a_node or deployment.launch.container is None:
        return
    documents = list(yaml.safe_load_all(target_files(deployment, ["kubernetes"])[0].text))
    [workload] = [each for each in documents if each["kind"] == "Deployment"]
    wanted = told_by([f"--model={deployment.model}", *workload["spec"]["template"]["spec"]["containers"][0]["args"]])

    [stack] = target_files(deployment, ["production-stack"])
    [model] = yaml.safe_load(stack.text)["servingEngineSpec"]["modelSpec"]
    config = model["vllmConfig"]
    keys = {"maxModelLen": "max-model-len", "dtype": "dtype", "tensorParallelSize": "tensor-parallel-size", "maxNumSeqs": "max-num-seqs",
            "gpuMemoryUtilization": "gpu_memory_utilization"}  # fmt: skip
    caches = "--enable-prefix-caching" if config.get("enablePrefixCaching") else "--no-enable-prefix-caching"
    written = [f"--{keys[key]}={value}" for key, value in config.items() if key in keys]
    stacked = told_by([f"--model={model['modelURL']}", caches, *written, *config["extraArgs"]])
    assert stacked - wanted == {f"{caches}="} and not wanted - stacked
    assert (caches == "--enable-prefix-caching") is deployment.launch.caches_prefixes

    [modelservice] = target_files(deployment, ["llm-d"])
    values = yaml.safe_load(modelservice.text)
    decode, artifacts = values["decode"], values["modelArtifacts"]
    degrees = {"tensor": "tensor-parallel-size", "data": "data-parallel-size"}
    parallel = [f"--{degrees[key]}={value}" for key, value in decode["parallelism"].items() if value > 1]
    named = [f"--model={deployment.model}", f"--served-model-name={artifacts['name']}"]
    served = told_by([*named, *parallel, *decode["containers"][0]["args"]])
    assert served == wanted


def test_a_folder_that_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished result"):
        deployed(tmp_path)


def test_all_writes_what_can_run_and_says_of_the_others_why_not() -> None:
    files, without = every_target(server(_TWO_MACHINES))
    assert {file.path for file in files} >= {"kuberay.yaml", "ray-serve.yaml", "skypilot.yaml", "dynamo.yaml"}
    assert any(each.target == "compose" and each.message for each in without)
    assert ALL not in LAUNCH_TARGETS.names()


def test_every_value_that_a_plan_sets_is_the_same_everywhere() -> None:
    """The arguments that Compose, Kubernetes, Ray and vLLM's own config file yield."""
    deployment = server("14-h100x2-70b-users")
    wanted = {each.name: str(each.value) for each in deployment.container.arguments}
    [compose, cluster, ray, own] = (
        target_files(deployment, [target])[0].data for target in ("compose", "kubernetes", "ray-serve", "engine")
    )
    pod = cluster["objects"][1]["spec"]["template"]["spec"]["containers"][0]
    for args in (compose["services"]["server"]["command"], pod["args"]):
        told = dict(arg.removeprefix("--").split("=", 1) for arg in args)
        assert wanted.items() <= told.items()
    [llm] = ray["applications"][0]["args"]["llm_configs"]
    kwargs = {name.replace("_", "-"): str(value) for name, value in llm["engine_kwargs"].items()}
    served = {"served-model-name": llm["model_loading_config"]["model_id"]}
    assert wanted.items() <= (kwargs | served).items()
    assert wanted.items() <= {name: str(value) for name, value in own.items()}.items()


def test_the_image_is_that_of_the_planned_version() -> None:
    assert server("17-v100-13b").container.image == "vllm/vllm-openai:v0.8.5"
    assert server("22-processor-135m").container.image.endswith("vllm-cpu-release-repo:v0.32.0")


def test_a_larger_checkpoint_gets_a_longer_start() -> None:
    small, large = server("03-t4-half-billion"), server("19-h200x8-deepseek-v3")
    assert small.startup_probes < large.startup_probes
    pod = target_files(large, ["kubernetes"])[0].data["objects"][1]["spec"]["template"]["spec"]["containers"][0]
    assert pod["startupProbe"]["failureThreshold"] * 10 >= 3 * large.load_seconds


def test_a_name_becomes_a_dns_label() -> None:
    made = server(_AS_IS)
    names = {"Qwen2.5-7B_x": "qwen2-5-7b-x", "70b": "m-70b", "a" * 80: "a" * 50}
    for name, label in names.items():
        assert replace(made, request=replace(made.request, served_name=name)).name == label


def test_cards_of_a_node_are_none_on_a_processor() -> None:
    assert Hardware("x", 1, is_cpu=True).of_a_node == 0
    assert Hardware("x", 1, 90, 16, 2).of_a_node == 8


def test_comments_stand_beside_or_above_what_they_explain() -> None:
    tree = {
        "a": Said(1, "first"),
        "b": [Said("x: y", "quoted"), {"c": Said({"d": "0"}, "nested")}],
        "e": Said([], "none"),
    }
    text = commented(tree, "head")
    assert text.splitlines()[:2] == ["# head", "a: 1  # first"]
    assert yaml.safe_load(text) == plain(tree) == {"a": 1, "b": ["x: y", {"c": {"d": "0"}}], "e": []}


def test_a_plan_is_launched_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def optimize(*args: object) -> tuple[int, str, str]:
        return run(monkeypatch, capsys, *args)

    made = plan(parse_spec("model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: vllm\n"))
    saved, out = tmp_path / "a.plan.json", tmp_path / "out" / "my.yaml"
    save(made.document, saved)
    assert optimize("launch", saved, "--target", "compose", "-o", out)[0] == 0
    assert yaml.safe_load(out.read_text())["services"]
    code, printed, _ = optimize("launch", "--list")
    assert code == 0 and "kuberay" in printed
    code, printed, _ = optimize("launch", "--list", "--json")
    assert code == 0 and {each["name"] for each in json.loads(printed)} == set(LAUNCH_TARGETS.names())
    code, printed, said = optimize("launch", saved, "--target", "all", "-o", tmp_path / "every", "--json")
    told = json.loads(printed)
    assert code == 0 and refused(told, schema("launch"), schema("launch")) == []
    assert all(Path(file["written"]).read_text() == file["text"] for file in told["files"])
    assert "Wrote" in said and all(each["message"] for each in told["refused"])
    code, printed, _ = optimize("launch", saved, "--target", "compose", "--json")
    assert code == 0 and not any("written" in file for file in json.loads(printed)["files"])
    code, printed, _ = optimize("launch", saved, "--target", "compos", "--json")
    assert code == 2 and "compose" in json.loads(printed)["error"]["message"]
    code, _, said = optimize("launch", saved, "--target", "compos")
    assert code == 2 and "compose" in said
    assert optimize("launch", saved)[0] == 2


def test_the_page_has_a_part_for_each_target_and_its_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "launch.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings == [*LAUNCH_TARGETS.names(), "How they are tested"]
    made = plan(parse_spec("model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: vllm\n"))
    assert made.result.chosen is not None
    monkeypatch.chdir(tmp_path)
    for place in ("a.plan.json", "out/small/plan.json"):
        save(made.document, tmp_path / place)
    (tmp_path / "out/small/config.json").write_text(json.dumps(made.result.chosen.ir.config))
    typed = (line.removeprefix("$ ") for line in page.splitlines() if line.startswith("$ optimize launch"))
    commands = [line.partition("#")[0].split()[1:] for line in typed]
    assert len(commands) == 4 and all(run(monkeypatch, capsys, *words)[0] == 0 for words in commands)
    assert "Qwen/Qwen2.5-7B-Instruct" in (tmp_path / "compose.yaml").read_text()  # served as it is: from its source
    assert (tmp_path / "launch" / "kuberay.yaml").exists()


def test_the_spec_names_known_targets_only() -> None:
    spec: dict[str, Any] = {"model": "Qwen/Qwen2.5-7B-Instruct", "target": {"gpu": "rtx-4090"}}
    with pytest.raises(InputError, match="compose"):
        as_spec(spec | {"launch": ["compos"]})
    assert as_spec(spec | {"launch": ["compose"]}).launch == ("compose",)


@pytest.mark.parametrize(("name", "group"), [("toy", True), ("systemd", False)])
def test_another_package_adds_one_and_replaces_none(
    name: str, group: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_target.py").write_text(_TARGET)
    info = tmp_path / "toy_target-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-target\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{LAUNCH_TARGETS.group}]\n{name} = toy_target:Toy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_target", raising=False)
    if group:
        [file] = target_files(server(_AS_IS), [name])
        assert file.text.startswith("vllm serve Qwen/")
    else:
        with pytest.raises(InputError, match="is there twice: in tightfit and in toy-target"):
            find_launch_target("another")


def test_what_starts_a_source_looks_first_by_a_command_that_check_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result's own script looks already; servers over several machines are not asked about on one of them."""
    as_is, made = server(_AS_IS), server(_MADE)
    asked = as_is.asked
    assert asked == f"-- {' '.join(as_is.command)}" and made.asked == "/srv/models/06-3090-chat-32b-tightfit"
    code, out, _ = run(monkeypatch, capsys, "check", "--gpu", as_is.hardware.gpu, "--json", "--", *as_is.command)
    assert code == 0 and json.loads(out)["fits"]
    assert f"optimize check --live {asked}" in units(as_is) and "optimize check" not in units(made)
    script = next(file.text for file in target_files(as_is, ["engine"]) if file.path.endswith("run.sh"))
    assert "optimize check --live -- vllm serve --config launch/vllm.yaml" in script
    for name, looks in (("09-l40s-rag-long-context", True), (_TWO_MACHINES, False)):
        [task] = target_files(server(name), ["skypilot"])
        assert ("optimize check --live" in task.data["run"]) is looks


def test_a_unit_s_name_for_people_is_one_line_and_expands_nothing() -> None:
    made = server(_MADE)
    named = replace(made, request=replace(made.request, served_name="50 %n\nExecStart=/bin/evil\\"))
    assert "Description=50 %%n ExecStart=/bin/evil\\ by tightfit\n" in units(named)
    assert len(units(named).splitlines()) == len(units(made).splitlines())


@pytest.mark.parametrize(
    ("pip", "fits", "skip", "code"),
    [(0, 0, "1", 0), (0, 3, "1", 1), (0, 2, "1", 0), (0, 6, "1", 0), (1, 3, "1", 0), (1, 3, "0", 0)],
)
def test_an_init_container_keeps_a_pod_from_starting_on_a_plain_no_alone(
    pip: int, fits: int, skip: str, code: int, tmp_path: Path
) -> None:
    [file] = target_files(server("04-l4-50-users-8b"), ["kubernetes"])
    _, workload, _ = yaml.safe_load_all(file.text)
    [checks] = workload["spec"]["template"]["spec"]["initContainers"]
    assert checks["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    for name, answer in (("pip", pip), ("optimize", fits)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\nexit {answer}\n')
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TIGHTFIT_CHECK": skip}
    done = subprocess.run([*checks["command"], *checks["args"]], env=environment, check=False)
    assert min(done.returncode, 1) == code
    said = (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""
    assert ("check --live -- vllm serve" in said) == (pip == 0)

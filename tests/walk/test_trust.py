"""A result that others can trust: what was changed in it is named, and a model or text that moved is known by what is in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from passes.files.manifest import damage, renew
from planner.apply import apply
from tests.planner.conftest import optimize  # noqa: F401 (a fixture)
from tests.walk.conftest import TINY_SPEC, save_tiny_llama


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    save_tiny_llama(folder / "model", blocks=2)
    (folder / "text.txt").write_text("who trusts a result must see what was done to it. " * 60)
    (folder / "tiny.yaml").write_text(TINY_SPEC)
    apply(folder / "tiny.yaml", folder / "made")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy with all that is beside it."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def edit(path: Path) -> None:
    """Change a certificate as somebody would who wants a better figure."""
    document = json.loads(path.read_text())
    document["quality"]["kl"] = 0.0001
    path.write_text(json.dumps(document, indent=2) + "\n")


def zero(path: Path) -> None:
    size = path.stat().st_size
    bytes_ = bytearray(path.read_bytes())
    bytes_[size // 2 : size // 2 + 64] = bytes(64)
    path.write_bytes(bytes(bytes_))


DAMAGE = {
    "certificate.json": edit,
    "plan.json": lambda path: path.write_text(path.read_text().replace("128", "256", 1)),
    "model-00000.safetensors": zero,
    "model-00001.safetensors": Path.unlink,
    "launch/vllm.yaml": lambda path: path.write_text(path.read_text() + "enforce-eager: true\n"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_change_is_named(folder: Path, optimize: Any, name: str) -> None:  # noqa: F811
    result = folder / "made"
    assert optimize("verify", "--offline", result)[0] == 0
    target = sorted(result.glob("model-*.safetensors"))[-1] if name.startswith("model-00001") else result / name
    DAMAGE[name](target)
    code, out, _ = optimize("verify", "--offline", result, "--json")
    report = json.loads(out)
    assert (code, report["holds"]) == (4, False)
    assert [each["file"] for each in report["damage"]] == [target.relative_to(result).as_posix()]


@pytest.mark.parametrize("name", ["model-99999.safetensors", "verified.json", "modeling_tiny.py", "launch/extra.json"])
def test_what_was_added_for_an_engine_to_read_is_named(folder: Path, optimize: Any, name: str) -> None:  # noqa: F811
    result = folder / "made"
    (result / "README.md").write_text("as a hub writes one")
    (result / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert optimize("verify", "--offline", result)[0] == 0
    (result / name).write_bytes(b"{}")
    code, out, _ = optimize("verify", "--offline", result, "--json")
    assert code == 4
    [found] = json.loads(out)["damage"]
    assert (found["file"], found["kind"]) == (name, "added")
    assert ("`optimize verify` of an earlier version" in found["message"]) is (name == "verified.json")


def test_a_list_that_is_gone_proves_nothing(folder: Path, optimize: Any) -> None:  # noqa: F811
    (folder / "made" / "manifest.json").unlink()
    code, out, _ = optimize("verify", "--offline", folder / "made")
    assert code == 4 and "manifest.json is missing" in out
    assert optimize("show", folder / "made")[0] == 0


def test_a_result_is_checked_where_it_lies(folder: Path, optimize: Any) -> None:  # noqa: F811
    code, out, _ = optimize("check", folder / "made", "--gpu", "RTX 4090", "--json")
    document = json.loads(out)
    assert (code, document["fits"], document["engine"]) == (0, True, "vllm")


@pytest.mark.parametrize("name", ["certificate.json", "model-00001.safetensors"])
def test_show_sees_edits_and_missing_files_at_once(folder: Path, optimize: Any, name: str) -> None:  # noqa: F811
    result = folder / "made"
    code, out, _ = optimize("show", result)
    assert code == 0
    assert "made for" in out and "RTX 4090" in out and "not measured" in out and "text.txt" in out
    target = sorted(result.glob("model-*.safetensors"))[-1] if name.startswith("model") else result / name
    DAMAGE[name](target)
    code, out, _ = optimize("show", result)
    assert code == 4
    assert target.name in out


def test_a_list_that_was_made_to_agree_is_seen_by_its_digest(folder: Path) -> None:
    manifest = folder / "made" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["files"]["certificate.json"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(document))
    assert [each.file for each in damage(folder / "made")] == ["manifest.json"]
    renew(folder / "made", ["certificate.json"])
    assert [each.file for each in damage(folder / "made")] == ["manifest.json"], "what was edited goes on saying so"
    files = {"certificate.json": 5}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps({"files": files, "digest": digest}))
    assert [each.file for each in damage(folder / "made")] == ["manifest.json"], "no list of ours"


def test_apply_does_not_call_a_damaged_result_done(folder: Path, optimize: Any) -> None:  # noqa: F811
    shard = sorted((folder / "made").glob("model-*.safetensors"))[-1]
    plan = folder / "it.plan.json"
    assert optimize("plan", folder / "tiny.yaml", "-o", plan)[0] == 0
    zero(shard)
    code, out, err = optimize("apply", plan, "-o", folder / "made")
    assert code == 4
    assert shard.name in err and "Done" not in out


def test_what_moved_is_known_by_what_is_in_it(folder: Path, optimize: Any) -> None:  # noqa: F811
    plan = folder / "it.plan.json"
    assert optimize("plan", folder / "tiny.yaml", "-o", plan)[0] == 0
    (folder / "model").rename(folder / "elsewhere")
    (folder / "text.txt").rename(folder / "words.txt")
    assert optimize("apply", plan, "-o", folder / "again")[0] == 2
    moved = ("--model", folder / "elsewhere", "--calibration", folder / "words.txt")
    code, _, err = optimize("apply", plan, "-o", folder / "again", *moved)
    assert code in (0, 4), err
    assert (folder / "again" / "certificate.json").is_file()
    (folder / "words.txt").write_text("another text altogether. " * 60)
    code, _, err = optimize("apply", plan, "-o", folder / "other", *moved)
    assert code == 5 and "calibration" in err
    save_tiny_llama(folder / "elsewhere", blocks=3)
    assert optimize("apply", plan, "-o", folder / "other", *moved)[0] == 5

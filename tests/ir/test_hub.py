"""The Hub: kilobytes for a description, pinned, cached, and every refusal explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from passes.errors import InputError
from passes.ir.sources import open_model
from tests.ir.checkpoints import write
from tests.ir.hub_server import COMMIT, Hub, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    folder = write(tmp_path / "repository", shards=2)
    monkeypatch.setenv("TIGHTFIT_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("passes.ir.readers.hub.FIRST_BYTES", 512)
    with serving(Hub(folder)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def test_a_description_costs_headers_only_and_is_pinned_to_a_commit(hub: Hub) -> None:
    source = open_model("acme/tiny")
    local = open_model(hub.folder)
    assert source.kind == "hub"
    assert source.revision == COMMIT
    assert source.header_digest == local.header_digest
    assert source.ir.stacks == local.ir.stacks
    files = list(hub.folder.glob("*.safetensors"))
    assert sum(hub.bytes_asked(path.name) for path in files) < sum(path.stat().st_size for path in files) / 4


def test_the_token_does_not_follow_a_redirect_to_another_host(hub: Hub) -> None:
    open_model("acme/tiny")
    assert hub.tokens_at_cdn
    assert set(hub.tokens_at_cdn) == {""}


def test_what_was_read_serves_again_without_the_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    online = open_model("acme/tiny")
    before = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = open_model("acme/tiny")
    assert (again.header_digest, again.revision) == (online.header_digest, COMMIT)
    assert len(hub.requests) == before


@pytest.mark.parametrize("variable", ["TIGHTFIT_HOME", "XDG_CACHE_HOME", "HF_ENDPOINT"])
def test_a_place_that_no_folder_can_have_is_no_traceback(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if variable == "XDG_CACHE_HOME":
        monkeypatch.delenv("TIGHTFIT_HOME")
    monkeypatch.setenv(variable, "https://" + "9" * 300)
    with pytest.raises(InputError):
        open_model("nobody/nothing")
    with pytest.raises(InputError):
        open_model("nobody/nothing", revision="9" * 300)


def test_a_server_without_ranges_is_read_only_as_far_as_needed(hub: Hub) -> None:
    hub.ranges = False
    assert open_model("acme/tiny").header_digest == open_model(hub.folder).header_digest


def test_busy_servers_and_broken_answers_are_tried_again(hub: Hub) -> None:
    hub.busy, hub.broken = 2, 1
    assert open_model("acme/tiny").revision == COMMIT


def test_a_server_that_stays_busy_ends_with_a_message(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.ir.readers.hub._TRIES", 2)
    hub.busy = 100
    with pytest.raises(InputError, match=r"did not answer .*429"):
        open_model("acme/tiny")


def test_gated_missing_and_wrong_revisions_are_explained(hub: Hub) -> None:
    with pytest.raises(InputError, match="no such repository, or it is private"):
        open_model("acme/unheard-of")
    with pytest.raises(InputError, match="no such revision"):
        open_model("acme/tiny", revision="v9")
    hub.gated = True
    with pytest.raises(InputError, match="gated") as refused:
        open_model("acme/tiny")
    assert "HF_TOKEN" in str(refused.value)


def test_a_shard_that_lies_about_its_size_is_refused(hub: Hub) -> None:
    shard = sorted(hub.folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InputError, match=f"{shard.name}.*truncated"):
        open_model("acme/tiny")


def test_pickle_repositories_are_refused(hub: Hub) -> None:
    for path in hub.folder.glob("*.safetensors*"):
        path.unlink()
    (hub.folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(InputError, match="pickle"):
        open_model("acme/tiny")


def test_materialize_downloads_the_pinned_commit_whole(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "extra.gguf").write_bytes(b"GGUF")
    folder = open_model("acme/tiny").materialize(tmp_path / "work")
    assert COMMIT in str(folder)
    assert {path.name for path in folder.iterdir()} == {p.name for p in hub.folder.iterdir()} - {"extra.gguf"}
    assert open_model(folder).header_digest == open_model(hub.folder).header_digest


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    source = open_model("acme/tiny")
    hub.asked.clear()
    hub.broken = 1
    folder = source.materialize(tmp_path / "work")
    shards = sorted(hub.folder.glob("*.safetensors"))
    assert all((folder / shard.name).read_bytes() == shard.read_bytes() for shard in shards)
    whole, again = sorted((hub.asked[shard.name] for shard in shards), key=len)
    assert [first for first, _ in whole] == [0], "the other file is asked for once"
    (_, size), (resumed, rest) = again
    assert 0 < resumed <= size // 2, "half arrived, and what of it was kept is not asked for again"
    assert resumed + rest == size


def test_files_that_were_downloaded_already_are_not_sent_again(hub: Hub, tmp_path: Path) -> None:
    source = open_model("acme/tiny")
    folder = source.materialize(tmp_path / "work")
    first, second = sorted(path.name for path in folder.glob("*.safetensors"))
    (folder / second).resolve().unlink()
    (folder / second).unlink()
    hub.asked.clear()
    source.materialize(tmp_path / "work")
    assert hub.asked[second] == [(0, (folder / second).stat().st_size)]
    assert first not in hub.asked


def test_a_download_with_a_wrong_hash_is_thrown_away(hub: Hub, tmp_path: Path) -> None:
    source = open_model("acme/tiny")
    folder = source.materialize(tmp_path)
    blob = sorted(folder.glob("*.safetensors"))[0].resolve()
    for mark in (tmp_path / "cache" / "verified").iterdir():
        mark.unlink()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(InputError, match="sha256"):
        source.materialize(tmp_path)
    assert open_model(source.materialize(tmp_path)).header_digest == source.header_digest


def test_a_full_disk_is_said_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from passes.errors import DoesNotFitError

    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 10))  # type: ignore[attr-defined]
    source = open_model("acme/tiny")
    with pytest.raises(DoesNotFitError, match="free, the rest of acme/tiny needs"):
        source.materialize(tmp_path)


@pytest.mark.parametrize(("off", "why"), [("1", "was not asked"), ("", "did not answer")])
def test_a_model_that_cannot_be_read_here_is_asked_for_by_its_config(
    off: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", off)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=f"not in the catalog, and the Hub {why}") as caught:
        open_model("nobody/Nothing-7B")
    assert "hf download nobody/Nothing-7B config.json" in str(caught.value.remedy)

"""Models of the Hugging Face Hub: config and safetensors headers by range requests, weights only on `download`.

A 70B model costs a few hundred kilobytes: config.json, the index, and the first bytes of every shard. What was read is kept in
`~/.cache/tightfit/hub`, by commit, and serves again without the network (`HF_HUB_OFFLINE=1`). The token, `HF_ENDPOINT` and the
download cache are huggingface_hub's.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.formats.tensor import DTYPE_BITS, Tensor
from passes.ir.fields import Fields, file_bytes, is_whole, json_object
from passes.ir.readers.headers import Header, header_length, merge, parse_header, shard_names
from passes.ir.readers.paths import cache_root
from passes.ir.readers.strange import PICKLE_REMEDY
from passes.record import dataclass

#: Enough for the header of most shards in one request.
FIRST_BYTES = 256 * 1024
_TRIES, _LONGEST_WAIT_S, _TIMEOUT_S = 4, 20.0, 20.0
_CONFIGS = ("config.json", "hf_quant_config.json", "quantize_config.json", "model.safetensors.index.json")
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})
_COMMIT = re.compile(r"\w+")
_REPO = re.compile(r"[\w.\-]+/[\w.\-]+")


@dataclass(frozen=True)
class Repository:
    """What is known of a repository at one commit, without its weights."""

    name: str
    commit: str
    configs: dict[str, dict[str, Any]]
    header: Header | None
    files: tuple[str, ...]


def offline() -> bool:
    """Tell whether the network is switched off for Hugging Face libraries."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def endpoint() -> str:
    """Name the Hub's address; `HF_ENDPOINT` names a mirror."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def is_repository_name(name: str) -> bool:
    """Tell whether a name has the form `organisation/model`."""
    return _REPO.fullmatch(name) is not None


def is_cached(name: str) -> bool:
    """Tell whether any revision of a repository was read before."""
    try:
        return _cache_folder(name).is_dir()
    except OSError:  # a mirror's name that no folder can have
        return False


def read_repository(name: str, revision: str | None = None) -> Repository:
    """Read a repository at a revision (branch, tag or commit; default `main`), pinned to its commit.

    Raises InputError for what is missing, gated, pickled, broken or unreachable, each with its remedy.
    """
    wanted = revision or "main"
    folder = _cache_folder(name)
    if offline():
        return _cached(folder, name, wanted)
    info = _get_json(f"/api/models/{name}/revision/{wanted}", name)
    said = Fields(info, name, f"{endpoint()}/api/models", remedy="Try again.")
    commit, listed = said.text("sha"), said.entries("siblings") if said.has("siblings") else []
    if not _COMMIT.fullmatch(commit):
        raise said.wrong("sha", "a commit", commit)
    files = tuple(file.text("rfilename") for file in listed)
    _write(folder / "refs" / wanted.replace("/", "%2F"), commit)
    if (folder / f"{commit}.json").is_file():
        return _cached(folder, name, commit)
    configs = {file: _get_json(f"/{name}/resolve/{commit}/{file}", name) for file in _CONFIGS if file in files}
    if "config.json" not in configs:
        raise InputError(f"{name}: the repository has no config.json", remedy=_no_config_remedy(files))
    found = Repository(name, commit, configs, _header(name, commit, files, configs), files)
    _write(folder / f"{commit}.json", _dump(found))
    return found


def _no_config_remedy(files: Iterable[str]) -> str:
    if "adapter_config.json" in files:
        return "It is an adapter (PEFT, such as LoRA): name the model that it was trained on."
    gguf = [file for file in files if file.endswith(".gguf")]
    return f"Download {gguf[0]} and name the file." if gguf else "Name a repository in transformers' format."


def _header(name: str, commit: str, files: tuple[str, ...], configs: dict[str, dict[str, Any]]) -> Header | None:
    index = configs.pop("model.safetensors.index.json", None)
    found = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    if index is not None:
        shards = shard_names(index, f"{name}/model.safetensors.index.json")
        if missing := [shard for shard in shards if shard not in files]:
            raise InputError(
                f"{name}: the repository lacks the shard {missing[0]}",
                remedy="Tell its publisher; name another revision.",
            )
    elif "model.safetensors" in found:
        shards = ("model.safetensors",)
    else:
        shards = tuple(sorted(file for file in found if not file.startswith("consolidated")))
    if not shards:
        if any(file.endswith((".bin", ".pt", ".pth")) for file in files):
            raise InputError(f"{name}: the repository holds pickle checkpoints only", remedy=PICKLE_REMEDY)
        return None
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=8) as pool:
        parts = dict(zip(shards, pool.map(lambda shard: _shard_header(name, commit, shard), shards), strict=True))
    return merge(parts, index, name)


def _shard_header(name: str, commit: str, shard: str) -> dict[str, Tensor]:
    where, path = f"{name}/{shard}", f"/{name}/resolve/{commit}/{shard}"
    first, size = _get_range(path, 0, FIRST_BYTES, name)
    length = header_length(first, size, where)
    raw = first[8 : 8 + length]
    while len(raw) < length:
        more, _ = _get_range(path, 8 + len(raw), length - len(raw), name)
        if not more:
            raise InputError(f"{where}: the server sent only part of the header", remedy="Try again.")
        raw += more
    return parse_header(raw, size, where)


def _get_json(path: str, name: str) -> dict[str, Any]:
    body, _ = _request(path, name, None)
    return json_object(body, f"{endpoint()}{path}", remedy="Try again.")


def _get_range(path: str, start: int, length: int, name: str) -> tuple[bytes, int]:
    """Some bytes of a file, and the file's size."""
    return _request(path, name, (start, length))


class UnreachableError(InputError):
    """The Hub did not answer."""


class _BusyError(Exception):
    """The server asks to come back later, or its answer broke off; `wait_s` where it says when."""

    def __init__(self, what: str, wait_s: float | None = None, *, hopeless: bool = False) -> None:
        super().__init__(what)
        self.wait_s = wait_s
        self.hopeless = hopeless


def _request(path: str, name: str, span: tuple[int, int] | None) -> tuple[bytes, int]:
    """One GET, repeated where the server is busy or the answer breaks off; not where its name cannot be looked up."""
    remedy = "Try again later, or set HF_HUB_OFFLINE=1 to use what is cached."
    url, last = endpoint() + path, ""
    for attempt in range(_TRIES):
        try:
            return _attempt(url, name, span)
        except _BusyError as busy:
            last = str(busy)
            if busy.hopeless:
                break
            wait = busy.wait_s if busy.wait_s is not None else 0.5 * 2.0**attempt
            if attempt + 1 < _TRIES:
                time.sleep(min(wait, _LONGEST_WAIT_S))
    raise UnreachableError(f"{name}: {url} did not answer ({last})", remedy=remedy)


def _attempt(url: str, name: str, span: tuple[int, int] | None) -> tuple[bytes, int]:
    import http.client
    import socket
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, headers=_headers(span))
    try:
        with urllib.request.build_opener(_redirects()).open(request, timeout=_TIMEOUT_S) as response:
            return _read_body(response.status, response.headers, response, span)
    except urllib.error.HTTPError as error:
        if error.code == 429 or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            raise _BusyError(f"HTTP {error.code}", float(after) if after.isdigit() else None) from error
        raise _refusal(error.code, error.headers.get("X-Error-Code", ""), url, name) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise _unusable(url, error) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        nameless = isinstance(reason, socket.gaierror)
        raise _BusyError(str(reason) or type(error).__name__, hopeless=nameless) from error


def _unusable(url: str, error: Exception) -> InputError:
    """The error for settings that no request can be made by: letters that an address or a token cannot have, an address that is none."""
    names = sorted(name for name in os.environ if name.lower() in _PROXIES or name in ("HF_ENDPOINT", "HF_TOKEN"))
    what = f"no request can be sent to {url} ({error})"
    return InputError(what, remedy=f"Mend or unset {', '.join(names) or 'the token'}.")


def _headers(span: tuple[int, int] | None) -> dict[str, str]:
    from huggingface_hub import get_token

    headers = {"User-Agent": "tightfit", "Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    if span is not None:
        headers["Range"] = f"bytes={span[0]}-{span[0] + span[1] - 1}"
    return headers


def _redirects() -> Any:
    """Follows redirects; the token stays with the host it was meant for."""
    import urllib.request
    from urllib.parse import urlsplit

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            new = super().redirect_request(req, fp, code, msg, headers, newurl)
            if new is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
                new.remove_header("Authorization")
            return new

    return Redirects()


def _read_body(status: int, headers: Any, body: Any, span: tuple[int, int] | None) -> tuple[bytes, int]:
    """The bytes asked for, and the whole file's size. A server that ignores ranges is read up to the end of the span only."""
    if span is None:
        everything = body.read()
        return everything, len(everything)
    start, length = span
    ranged = status == 206
    said = headers.get("Content-Range", "").rpartition("/")[2] if ranged else headers.get("Content-Length", "")
    if not said.isdigit():
        raise _BusyError("the server does not say the file's size")
    skip, size = 0 if ranged else start, int(said)
    found = body.read(skip + length)
    if len(found) < min(skip + length, size - (start if ranged else 0)):
        raise _BusyError("the answer broke off")
    return found[skip : skip + length], size


def _refusal(status: int, code: str, url: str, name: str) -> InputError:
    """What the Hub refuses, in words (its X-Error-Code header says why)."""
    page = f"{endpoint()}/{name}"
    if code == "GatedRepo" or status == 403:
        remedy = f"Accept its terms at {page}, then set HF_TOKEN or run `hf auth login`."
        return InputError(f"{name}: the repository is gated", remedy=remedy)
    if code == "RevisionNotFound":
        return InputError(f"{name}: no such revision ({url})", remedy=f"Look at {page}/commits/main for what exists.")
    if code == "EntryNotFound":
        return InputError(
            f"{name}: no such file ({url})", remedy="The repository is incomplete; name another revision."
        )
    if status in (401, 404):
        from passes.ir.names import unknown_model

        return InputError(
            f"{unknown_model(name).message} The Hub knows no such repository, or it is private.",
            remedy="Check the name; for a private repository set HF_TOKEN.",
        )
    return InputError(f"{name}: {url} answered HTTP {status}", remedy="Try again later.")


def _cache_folder(name: str) -> Path:
    host = re.sub(r"\W+", "-", endpoint().partition("://")[2])
    return cache_root() / "hub" / host / name.replace("/", "--")


def _cached(folder: Path, name: str, wanted: str) -> Repository:
    """What was read before."""
    reference = folder / "refs" / wanted.replace("/", "%2F")
    try:
        commit = reference.read_text() if reference.is_file() else wanted
        file = folder / f"{commit}.json"
        kept = json_object(file_bytes(file), str(file), remedy=f"Remove {file}; it is read again.")
    except OSError:
        raise InputError(
            f"{name}: the network is off (HF_HUB_OFFLINE) and {wanted} was not read before",
            remedy="Switch the network on once, or name a local folder.",
        ) from None
    said = Fields(kept, str(file), "what is kept of the repository", remedy=f"Remove {file}; it is read again.")
    header = None
    if said.has("tensors"):
        rows = [_kept_tensor(said, row) for row in said.items("tensors")]
        header = Header({tensor.name: tensor for tensor, _ in rows}, {tensor.name: shard for tensor, shard in rows})
    configs = said.inside("configs")
    return Repository(
        name,
        commit,
        {config: dict(configs.mapping(config)) for config in configs.values},
        header,
        tuple(said.names("files")),
    )


def _kept_tensor(said: Fields, row: Any) -> tuple[Tensor, str]:
    """A tensor as `_dump` writes it, and its file."""
    match row:
        case [str(tensor), str(dtype), [*shape], str(file)] if dtype in DTYPE_BITS and all(map(is_whole, shape)):
            return Tensor(tensor, dtype, tuple(shape)), file
    raise said.wrong("tensors", "rows of name, dtype, shape and file", row)


def _dump(found: Repository) -> str:
    rows = None
    if found.header is not None:
        rows = [[t.name, t.dtype, list(t.shape), found.header.files[t.name]] for t in found.header.tensors.values()]
    return json.dumps({"configs": found.configs, "files": found.files, "tensors": rows})


def _write(path: Path, text: str) -> None:
    """Whole or not at all; a cache that cannot be written is no error."""
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError:
        return

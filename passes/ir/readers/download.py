"""The weights of a Hub model: one commit, safetensors and what belongs to them, disk checked first, hashes verified."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from passes.errors import DoesNotFitError, InputError, TightfitError
from passes.ir.readers.hub import endpoint, offline
from passes.ir.readers.paths import cache_root

#: What a model needs; pickles, GGUF files and other frameworks' weights stay away.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*", "*.tiktoken")
IGNORED = ("consolidated*.safetensors", "original/*", "onnx/*", "*/*.safetensors", "training_args*", "trainer_state*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(name: str, commit: str | None) -> Path:
    """Fetch a repository at a commit into a folder, in huggingface_hub's cache.

    A connection that breaks off goes on where it stopped; a run after one that was ended loads the files that are not there whole.

    Raises DoesNotFitError when the disk lacks room, InputError when it cannot be had or a file's hash is wrong.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not offline():
        _check_disk(name, commit, Path(constants.HF_HUB_CACHE))
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=commit,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(IGNORED),
            endpoint=endpoint(),
            local_files_only=offline(),
        )
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name}: not downloaded yet and the network is off", remedy="Unset HF_HUB_OFFLINE once."
        ) from error
    except HfHubHTTPError as error:
        raise _refused(name, error) from error
    except OSError as error:
        raise InputError(
            f"{name}: the download stopped ({error})", remedy="Run the command again; files that are there whole stay."
        ) from error
    verify(Path(folder))
    return Path(folder)


def _refused(name: str, error: Exception) -> TightfitError:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        remedy = f"Accept its terms at {endpoint()}/{name}, then set HF_TOKEN or run `hf auth login`."
        return InputError(f"{name}: the repository is gated", remedy=remedy)
    return InputError(
        f"{name}: the Hub refused the download ({str(error).splitlines()[0]})", remedy="Check the name and your token."
    )


def _check_disk(name: str, commit: str | None, cache: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        plan = huggingface_hub.snapshot_download(
            name,
            revision=commit,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(IGNORED),
            endpoint=endpoint(),
            dry_run=True,
        )
    except HfHubHTTPError as error:
        raise _refused(name, error) from error
    except OSError as error:
        raise InputError(f"{name}: the Hub did not answer ({error})", remedy="Try again later.") from error
    need = sum(file.file_size or 0 for file in plan if file.will_download)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise DoesNotFitError(
            f"{cache}: {free / 1e9:.1f} GB free, the rest of {name} needs {need / 1e9:.1f}",
            remedy="Free some space, or set HF_HOME to a folder on another disk.",
        )


def verify(folder: Path) -> None:
    """Compare every weight file with the sha256 that names its blob in the cache; each blob once. A wrong one is deleted."""
    for path in sorted(folder.glob("*.safetensors")):
        blob = path.resolve()
        if not _SHA256.fullmatch(blob.name):
            continue
        mark = cache_root() / "verified" / blob.name
        if mark.is_file() and mark.read_text() == str(blob.stat().st_size):
            continue
        with blob.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != blob.name:
            path.unlink()
            blob.unlink()
            raise InputError(
                f"{path.name}: its content does not have the published sha256",
                remedy="Run the command again to download it anew.",
            )
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(blob.stat().st_size))

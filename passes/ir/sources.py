"""The ways in: a local folder, a GGUF file, the bundled catalog, the Hugging Face Hub. `open_model` tells them apart.

Headers are the truth about tensors, config.json about meaning. Nothing here downloads weights before `materialize`, and the
source is never written to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any, TypeAlias

from passes.errors import InputError
from passes.ir import catalog
from passes.ir.architectures import build_ir, other_head
from passes.ir.fields import file_bytes, json_object
from passes.ir.model import ModelIR
from passes.ir.names import Match, find, holds_gguf, repository_of, unknown_model
from passes.ir.quant_config.read import quantized
from passes.ir.readers.headers import read_folder_header
from passes.ir.readers.hub import UnreachableError, is_cached, is_repository_name, offline, read_repository
from passes.ir.readers.paths import path_named
from passes.ir.readers.reconcile import reconcile
from passes.ir.readers.strange import strange
from passes.record import dataclass

#: What a result needs besides config and weights; carried along as it is.
CARRIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "tekken.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "tiktoken.model",
)  # fmt: skip
#: Hears how many of how many are done.
Counted: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """A model that was found: its description and the way to its weights.

    `path`: the folder or file, None where the weights are elsewhere. `revision`: the commit of a Hub model. `header_digest`:
    sha256 over names, dtypes and shapes of the tensors; over the config where there are no headers. `files`: tokenizer, chat
    template and the like beside the weights.
    """

    ir: ModelIR
    kind: str
    path: Path | None
    revision: str | None
    header_digest: str
    has_weights: bool
    files: tuple[Path, ...] = ()
    stored_bytes: int | None = None
    """Bytes of the tensors as they lie on disk, by their headers; None where there are none."""
    materializer: Callable[[Path, Counted], Path] | None = field(default=None, compare=False, repr=False)
    as_stored: ModelIR | None = None
    """The description of a file that is made something else before work begins on it; `ir` is of what it becomes."""
    unreadable: str | None = None
    """Why its weights cannot be made into what `ir` describes, and what to do; None where they can."""

    def materialize(self, work: Path, counted: Counted = lambda done, total: None) -> Path:
        """Make a folder with config, tokenizer and safetensors: the folder itself, or made once inside `work`. `counted` hears how many
        tensors of how many are made.
        """
        self.require_readable()
        if self.materializer is not None:
            return self.materializer(work, counted)
        if self.path is None or not self.has_weights:
            raise InputError(
                f"{self.ir.name}: only its description is known here, not its weights",
                remedy="Name a folder with safetensors, a .gguf file, or a Hub model with the network on.",
            )
        return self.path

    def require_readable(self) -> None:
        """Raise InputError where the weights cannot be worked on, or generate nothing that could be compared."""
        if (kind := other_head(self.ir.config, self.ir.name)) is not None:
            raise InputError(
                f"{self.ir.name}: a {kind}, which makes no tokens; what its passes would lose cannot be measured",
                remedy="Name a model that generates; `optimize check` sizes this one.",
            )
        if self.unreadable is not None:
            what, _, remedy = self.unreadable.partition("; ")
            raise InputError(f"{self.path}: {what}", remedy=f"{remedy[:1].upper()}{remedy[1:]}.")


def open_model(
    model: str | Path, *, revision: str | None = None, assume: str | None = None, elsewhere: str | None = None
) -> Source:
    """Find a model: an existing folder or .gguf file, else a name of the catalog, else a Hub repository.

    `revision` pins a Hub commit, branch or tag. `assume`: how to read an architecture that is not known. `elsewhere`: the model is
    another machine's, so that a .gguf file that is not here is read by its name; and what is of the same shapes (its tokenizer's
    model), else empty. Raises InputError with the nearest known names.
    """
    path = path_named(model)
    if path.is_dir():
        return _open_folder(path, assume)
    if path.suffix.lower() == ".gguf" and (elsewhere is None or path.exists()):
        return _open_gguf(path, assume)
    if path.is_file():
        raise InputError(
            f"{path}: a model is a folder with config.json, or a .gguf file",
            remedy="Name the folder that holds this file.",
        )
    name = repository_of(str(model))
    if "gguf" in name.lower() and (named := _open_named_gguf(name, elsewhere or "", assume)) is not None:
        return named
    if path.suffix.lower() == ".gguf":
        return _open_gguf(path, assume)
    match = find(name) if revision is None or offline() else None
    if match is not None and match.quantization and is_repository_name(name) and not offline():
        try:
            return _open_hub(name, revision, assume)
        except UnreachableError:
            return _open_catalog(name, match, assume)
    if match is not None:
        return _open_catalog(name, match, assume)
    if not is_repository_name(name):
        raise unknown_model(name)
    if offline() and not is_cached(name):
        raise _not_here(name, "the Hub was not asked (HF_HUB_OFFLINE)", "Switch the network on")
    try:
        return _open_hub(name, revision, assume)
    except UnreachableError as error:
        raise _not_here(name, "the Hub did not answer", f"{error.message}. {error.remedy}") from error


def _not_here(name: str, why: str, remedy: str) -> InputError:
    """Make the error for a Hub id that neither the catalog nor the Hub told of: its config.json alone, from wherever, is a model too."""
    unknown = unknown_model(name)
    if holds_gguf(name):
        return unknown  # such a repository has no config.json
    told = unknown.message
    stop = "" if told.endswith((".", "?")) else "."
    return InputError(
        f"{told}{stop} It is not in the catalog, and {why}.",
        remedy=f"{remedy.rstrip('.')}. Or bring its config.json, without weights: `hf download {name} config.json --local-dir FOLDER` "
        "where there is a network, then name the folder (--model FOLDER, also before a pasted command).",
    )


def described(name: str) -> ModelIR | None:
    """Describe a name by the catalog alone, whatever the Hub would say; None for a name that it does not know."""
    match = find(name)
    return None if match is None else _catalog_ir(match, None, name)


def _open_folder(folder: Path, assume: str | None) -> Source:
    config = folder_config(folder)
    header = read_folder_header(folder)
    name = folder.resolve().name
    ir = quantized(build_ir(config, name, assume=assume, stored=header.tensors.values() if header else None))
    if header is not None:
        ir = reconcile(ir, header.tensors)
    files = tuple(folder / file for file in CARRIED if (folder / file).is_file())
    digest = header.digest if header else config_digest(config)
    return Source(
        ir,
        "folder",
        folder,
        None,
        digest,
        header is not None,
        files,
        stored_bytes=header.tensor_bytes if header else None,
    )


#: What a folder without config.json is, by a file in it.
_OTHER_FOLDERS = {
    "adapter_config.json": "an adapter (PEFT, such as LoRA), not a model",
    "model_index.json": "a diffusers pipeline, not a language model",
    "params.json": "a model in its maker's own format, without config.json",
}


def folder_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a folder, completed by `fold_in`. Raises InputError that says what else the folder is."""
    if not (folder / "config.json").is_file():
        _refuse_other(folder)
    return fold_in(
        read_json(folder / "config.json"), lambda name: read_json(folder / name) if (folder / name).is_file() else None
    )


def _refuse_other(folder: Path) -> None:
    found = next((name for name in _OTHER_FOLDERS if (folder / name).is_file()), None)
    if found == "adapter_config.json":
        base = read_json(folder / found).get("base_model_name_or_path")
        raise InputError(
            f"{folder}: {_OTHER_FOLDERS[found]}",
            remedy=f"Name the model that it was trained on{f' ({base})' if isinstance(base, str) else ''}, or merge it into that.",
        )
    if found is not None:
        raise InputError(
            f"{folder}: {_OTHER_FOLDERS[found]}", remedy="Name the model's folder in transformers' format."
        )
    if any(folder.glob("*.gguf")):
        from passes.ir.readers.gguf_parts import models_of

        files = models_of(folder)
        more = f" (or one of {len(files) - 1} others there)" if len(files) > 1 else ""
        raise InputError(f"{folder}: a folder of GGUF files", remedy=f"Name the file: {folder / files[0]}{more}.")


def fold_in(config: dict[str, Any], read: Callable[[str], dict[str, Any] | None]) -> dict[str, Any]:
    """Return config.json with ModelOpt's separate hf_quant_config.json or AutoGPTQ's quantize_config.json, where it names none."""
    if "quantization_config" in config:
        return config
    if (found := read("hf_quant_config.json")) is not None:
        return {**config, "hf_quant_config": found}
    if (found := read("quantize_config.json")) is not None:
        return {**config, "quantization_config": {"quant_method": "gptq", **found}}
    return config


def _open_gguf(path: Path, assume: str | None) -> Source:
    # Imported when needed, as `download` is: planning by name is quick.
    from passes.ir.readers.gguf_model import as_stored, check_tensors, dequantize, hf_config, rounded_bits, unreadable
    from passes.ir.readers.gguf_parts import read_gguf

    header, files = read_gguf(path)
    ir = build_ir(hf_config(header, path.stem), path.stem, assume=assume)
    check_tensors(header, ir)
    ir = replace(ir, rounded_bits=rounded_bits(header))
    return Source(
        ir, "gguf", files[0], None, header.digest, True, stored_bytes=header.tensor_bytes,
        materializer=lambda work, counted: dequantize(path, ir, header, work, counted), as_stored=as_stored(header, ir),
        unreadable=unreadable(header, len(files)),
    )  # fmt: skip


def _open_named_gguf(name: str, like: str, assume: str | None) -> Source | None:
    """A GGUF file that is known by its name alone; None where that tells too little."""
    from passes.ir.readers.gguf_named import named_file, stored_so

    if (file := named_file(name)) is None:
        return None
    told = (find(each) for each in (file.model, file.model.partition("_")[2], like) if each)
    match = next((found for found in told if found is not None and not found.quantization), None)
    if match is None:
        return None
    dense = _catalog_ir(match, assume, name)
    note = f"{name} is known by its name alone: shapes of {match.id}, assumed stored as llama.cpp stores {file.stored}"
    ir = replace(dense, name=name, notes=(*dense.notes, note))
    return Source(
        ir, "catalog", None, None, config_digest(_catalog_config(match)), False, as_stored=stored_so(ir, file)
    )


def _downloaded(name: str, revision: str | None) -> Path:
    # Imported when needed: most commands read headers only.
    from passes.ir.readers.download import download

    return download(name, revision)


def _open_catalog(name: str, match: Match, assume: str | None) -> Source:
    ir, config = _catalog_ir(match, assume, name), _catalog_config(match)
    repository = match.id if match.note is None else name if is_repository_name(name) else None
    if repository is None or offline():
        return Source(ir, "catalog", None, None, config_digest(config), False)
    return Source(
        ir, "catalog", None, None, config_digest(config), True, materializer=lambda *_: _downloaded(repository, None)
    )


def _catalog_config(match: Match) -> dict[str, Any]:
    entry = catalog.entry(match.id)
    own = entry.dense_config if match.dense else entry.config
    return own | dict(match.config or {}) | ({"quantization_config": match.quantization} if match.quantization else {})


def _catalog_ir(match: Match, assume: str | None, name: str) -> ModelIR:
    entry = catalog.entry(match.id)
    asked = match.note is not None and (match.quantization is not None or match.dense or is_repository_name(name))
    ir = quantized(build_ir(_catalog_config(match), name if asked else entry.id, assume=assume))
    notes = tuple(note for note in (match.note, entry.note) if note)
    return replace(ir, notes=(*ir.notes, *notes), spread=max(match.spread, entry.spread))


def _open_hub(name: str, revision: str | None, assume: str | None) -> Source:
    found = read_repository(name, revision)
    config = fold_in(found.configs["config.json"], found.configs.get)
    header = found.header
    ir = quantized(build_ir(config, name, assume=assume, stored=header.tensors.values() if header else None))
    if header is not None:
        ir = reconcile(ir, header.tensors)
    return Source(
        ir,
        "hub",
        None,
        found.commit,
        header.digest if header else config_digest(config),
        header is not None,
        stored_bytes=header.tensor_bytes if header else None,
        materializer=(lambda *_: _downloaded(name, found.commit)) if header else None,
    )


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the sha256 over a config, keys sorted."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; InputError naming it otherwise."""
    try:
        raw = file_bytes(path)
        if raw.lstrip()[:1] in (b"<", b"v") and (other := strange(raw, str(path), "JSON")):
            raise other
        return json_object(raw, str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: missing", remedy="A model folder needs a config.json.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})", remedy="Make it a file that you may read.") from error

"""Models' folders of odd names and contents, adapters, tokenizers, calibration texts, and an odd environment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from benchmarks.hostile_inputs.mutate import mutated, written
from benchmarks.hostile_inputs.surfaces import NAMES, NUMBERS, TINY, command, tiny_checkpoint
from passes.text.source import texts, tokenizer_of

_NAMED = (
    "a b", "%s", "[x]", "-model", "--tp", "é", "\udcff", "a\nb", "x" * 200, ".", "model.gguf", "$(x)", "'", "😀", "~", "#", "a:b", "0", "config.json",
)  # fmt: skip
_ADAPTER = {
    "base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct",
    "peft_type": "LORA",
    "r": 16,
    "target_modules": ["q_proj"],
}
_TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [{"id": 0, "content": "<s>", "special": True}], "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, "post_processor": None,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
}  # fmt: skip
_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "model_max_length": 256,
    "chat_template": "{{ messages }}",
}
_RECORDS = (
    {"text": "some words"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]},
    {"content": "more"},
)


def folders(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A model's folder whose name or whose files are odd: links in a ring, folders and pipes in their place, an adapter."""
    shutil.rmtree(folder)
    place = folder / rng.choice(_NAMED)
    place.mkdir(parents=True, exist_ok=True)
    raw, data = tiny_checkpoint()
    (place / "config.json").write_text(json.dumps(TINY))
    (place / "model.safetensors").write_bytes(raw + data)
    names = (
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "adapter_config.json",
        "generation_config.json",
        "tokenizer.json",
    )
    file, how = place / rng.choice(names), rng.random()
    if file.name == "adapter_config.json":
        file.write_bytes(written(rng, mutated(rng, _ADAPTER)))
        (place / "config.json").unlink()
    elif how < 0.7:
        file.unlink(missing_ok=True)
        made = rng.choice([_nothing, _folder, _ring, _dangling, _pipe, _device])
        made(file)
    asked = str(place) if rng.random() < 0.8 else str(place / rng.choice(NAMES)[:100])
    arguments = ["check", "--model", asked, "--gpu", "L4", *rng.choice([[], ["--json"]])]
    return lambda: command(arguments), f"{arguments} {file.name}"


def _nothing(file: Path) -> None: ...


def _folder(file: Path) -> None:
    file.mkdir()


def _ring(file: Path) -> None:
    file.symlink_to(file)


def _dangling(file: Path) -> None:
    file.symlink_to(file.parent / "nowhere")


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def tokenizers(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A tokenizer, or a text for calibration in one of its file types."""
    (folder / "config.json").write_text(json.dumps(TINY))
    tokenizer, config = mutated(rng, _TOKENIZER), mutated(rng, _TOKENIZER_CONFIG)
    if rng.random() < 0.5:
        tokenizer = _TOKENIZER
    (folder / "tokenizer.json").write_bytes(written(rng, tokenizer))
    (folder / "tokenizer_config.json").write_bytes(written(rng, config))
    return lambda: tokenizer_of(folder), json.dumps([tokenizer, config])


def calibrations(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A text for calibration."""
    records = [mutated(rng, rng.choice(_RECORDS)) for _ in range(3)]
    kind = rng.choice(["jsonl", "jsonl", "json", "txt", "parquet", "md"])
    raw = b"\n".join(written(rng, record) for record in records)
    file = folder / f"text.{kind}"
    file.write_bytes(raw)
    return lambda: [*texts(str(file), None)], f"{kind} {raw!r}"


_VARIABLES = (
    "HF_HOME", "HF_ENDPOINT", "https_proxy", "HTTPS_PROXY", "NO_PROXY", "HF_TOKEN", "TIGHTFIT_HOME", "TIGHTFIT_ENGINE", "CUDA_VISIBLE_DEVICES",
    "XDG_CACHE_HOME", "HOME", "COLUMNS", "NO_COLOR", "TERM", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONIOENCODING",
)  # fmt: skip
_ASKED = (
    ["check", "--model", "Qwen/Qwen2.5-1.5B-Instruct", "--gpu", "L4"], ["targets"], ["models"], ["doctor"],
    ["check", "--live", "--model", "Qwen/Qwen2.5-1.5B-Instruct"], ["check", "--model", "Qwen/Qwen2.5-1.5B-Instruct", "--gpu", "cpu"],
    ["check", "--model", "org/other", "--gpu", "L4"],
)  # fmt: skip


def environments(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A command in an environment of odd values."""
    odd = [
        name
        for name in (*NAMES, *NUMBERS, "/dev/null", "/dev/null/x", str(folder))
        if "\x00" not in name and "\ud800" not in name
    ]
    asked = {name: rng.choice(odd)[:1000] for name in rng.sample(_VARIABLES, rng.randint(1, 3))}
    arguments = rng.choice(_ASKED)

    def run() -> None:
        with _environment(asked):
            command(arguments)

    return run, f"{asked} {arguments}"


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

"""Calibration and evaluation text as blocks of token ids, each begun as an engine begins a prompt.

Where the tokenizer puts a token before a text (`<bos>` of Llama, Gemma, Mistral), every block starts with it: a served model
never sees a prompt without, and its attention keeps its sink there.

Calibration text comes from what the spec names: a text, jsonl or parquet file, a Hub data set, or `self`: text that the
model writes itself at temperature 1 (data-free calibration as in LLM-QAT, Liu et al. 2023), on from that first token or, where a
family has none, from a random one. Evaluation text always has another source; unless one is named it is the language reference that
every Python installation carries (`pydoc_data.topics`), which no model here writes by itself and which needs no network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.errors import InputError
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

    from passes.steps.step import Report

#: The name of the evaluation text that needs no file and no network.
PYTHON_REFERENCE = "python-reference"
#: Keys under which data sets keep their text, in this order.
_TEXT_KEYS = ("text", "content", "document", "article", "body")
_FILE_SUFFIXES = (".txt", ".md", ".json", ".jsonl", ".parquet")
TEXT_REMEDY = "name a .txt, .jsonl or .parquet file, a Hub data set (owner/name), or `self`"


@dataclass(frozen=True, slots=True)
class TextSource:
    """`samples` blocks of `length` tokens from `dataset`: `self`, `python-reference`, a file, or a Hub data set's id.

    `trust_remote_code`: the model's folder may bring tokenizer code of its own, which is then run. Model code never is.
    """

    dataset: str = "self"
    samples: int = 128
    length: int = 2048
    seed: int = 0
    trust_remote_code: bool = False


def token_blocks(
    source: TextSource,
    model_folder: Path,
    parts: Path | None = None,
    progress: Report = lambda done, total, detail="": None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return token ids int64 `[samples, length]`, the same for the same source, seed and model; of `self` on a card, for the same card
    too.

    `parts`: where text that the model writes is kept as it grows, so that a run that was killed goes on there.
    `device`: where it writes; by default the first that `passes.blocks.devices.compute_devices` finds.

    Raises InputError when the text is missing, unreadable or too short.
    """
    from passes.text.self_written import written_by_model

    tokenizer = tokenizer_of(model_folder, source.trust_remote_code)
    least = max(2, len(first_tokens(tokenizer)) + 1)
    if source.samples < 1 or source.length < least:
        raise InputError(
            f"{source.samples} samples of {source.length} tokens is no text",
            remedy=f"at least 1 sample of {least} tokens",
        )
    if source.dataset == "self":
        return written_by_model(source, model_folder, tokenizer, parts, progress, device)
    return _from_texts(source, tokenizer, texts(source.dataset, tokenizer))


def first_tokens(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer puts before a text, as engines feed it: `<bos>` for many families, none for others."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    starts = (start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    return list(whole[: next(starts, 0)])


def refuse_same_text(calibration: str, evaluation: str) -> None:
    """Raise InputError where two data sets are one, or files with the same content: a result is not judged by what it was fitted to."""
    same = calibration == evaluation
    if not same and Path(calibration).is_file() and Path(evaluation).is_file():
        same = _file_digest(Path(calibration)) == _file_digest(Path(evaluation))
    if same:
        raise InputError(
            f"calibration and evaluation text are both {calibration!r}",
            remedy="name another text for one of them: a result must not be judged by the text it was fitted to",
        )


def refuse_missing_text(dataset: str) -> None:
    """Raise InputError where a data set's name can only be that of a file, and there is none that can be read."""
    path = Path(dataset)
    if path.suffix in _FILE_SUFFIXES or path.is_absolute():
        if not path.is_file():
            raise InputError(f"no text at {dataset}", remedy=TEXT_REMEDY)
        if path.suffix == ".parquet":
            next(_parquet_texts(path), None)


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def tokens_digest(tokens: torch.Tensor) -> str:
    """Return the sha256 over shape and ids: what a plan locks."""
    header = f"{tuple(tokens.shape)}".encode()
    return hashlib.sha256(header + tokens.contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def texts(dataset: str, tokenizer: Any) -> Iterator[str]:
    """Yield the documents of a named source."""
    path = Path(dataset)
    if dataset == PYTHON_REFERENCE:
        from pydoc_data.topics import topics

        return iter([topics[name] for name in sorted(topics)])
    if path.is_file():
        return _file_texts(path, tokenizer)
    if path.suffix or dataset.count("/") != 1:
        raise InputError(f"no calibration text {dataset!r}", remedy=TEXT_REMEDY)
    return _hub_texts(dataset)


def _file_texts(path: Path, tokenizer: Any) -> Iterator[str]:
    if path.suffix == ".parquet":
        yield from _parquet_texts(path)
    elif path.suffix in (".jsonl", ".json"):
        yield from _jsonl_texts(path, tokenizer)
    else:
        yield _decoded(path)


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}", remedy="name a text, jsonl or parquet file") from error


def _jsonl_texts(path: Path, tokenizer: Any) -> Iterator[str]:
    for number, line in enumerate(_decoded(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON: {error}", remedy="one JSON object a line") from error
        yield _record_text(record, f"{path}:{number}", tokenizer)


def _record_text(record: Any, where: str, tokenizer: Any | None) -> str:
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        for key in _TEXT_KEYS:
            if isinstance(record.get(key), str):
                return str(record[key])
        if isinstance(record.get("messages"), list) and tokenizer is not None:
            return _chat(record["messages"], where, tokenizer)
    raise InputError(
        f"{where}: no text found", remedy=f"expected one of the fields {', '.join(_TEXT_KEYS)} or messages"
    )


def _chat(messages: list[Any], where: str, tokenizer: Any) -> str:
    """A conversation as the model's own template writes it."""
    try:
        written = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:
        what = f"{where}: the chat template does not write these messages ({type(error).__name__}: {str(error)[:200]})"
        raise InputError(what, remedy='expected is [{"role": "user", "content": "…"}, …]') from error
    return written.removeprefix(tokenizer.bos_token or "")  # each block brings its own


def _parquet_texts(path: Path) -> Iterator[str]:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no parquet file: {error}", remedy="name a text, jsonl or parquet file") from error
    column = next((key for key in _TEXT_KEYS if key in table.schema_arrow.names), None)
    if column is None:
        raise InputError(f"{path} has no text column", remedy=f"expected one of {', '.join(_TEXT_KEYS)}")
    for batch in table.iter_batches(columns=[column]):
        yield from (str(text) for text in batch.column(0).to_pylist() if text)


def _hub_texts(dataset: str) -> Iterator[str]:
    from datasets import load_dataset

    try:
        stream = load_dataset(dataset, split="train", streaming=True)
        for record in stream:
            yield _record_text(record, dataset, None)
    except (OSError, ValueError) as error:
        raise InputError(
            f"could not read the data set {dataset!r}: {str(error).partition(chr(10))[0]}",
            remedy="check its name and the network, or name a text file, or `self`",
        ) from error


def _from_texts(source: TextSource, tokenizer: Any, documents: Iterator[str]) -> torch.Tensor:
    """Documents joined by the end-of-text token, cut into blocks, and `samples` of them drawn by the seed.

    Reads at most eight times the tokens asked for, so that a large data set is not read whole.
    """
    import torch

    first = torch.tensor(first_tokens(tokenizer), dtype=torch.int64)
    length = source.length - len(first)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream = (
        token
        for text in documents
        for token in (*tokenizer(text, add_special_tokens=False, verbose=False).input_ids, *end)
    )
    ids = list(islice(stream, 8 * source.samples * length))
    blocks = len(ids) // length
    if blocks < source.samples:
        less = f"ask for at most {blocks} samples of {source.length} tokens, or " if blocks else ""
        raise InputError(
            f"{source.dataset} holds {len(ids):,} tokens, {source.samples} x {source.length} were asked for",
            remedy=f"{less}name more text",
        )
    cut = torch.tensor(ids[: blocks * length], dtype=torch.int64).reshape(blocks, length)
    chosen = torch.randperm(blocks, generator=torch.Generator().manual_seed(source.seed))[: source.samples]
    return torch.cat([first.expand(source.samples, -1), cut[chosen.sort().values]], dim=1)


def tokenizer_of(model_folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer in a model's folder. Raises InputError where there is none that can be used."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        why = f" ({type(error).__name__}: {str(error)[:200]})"
        raise InputError(
            f"{model_folder} has no usable tokenizer{why}", remedy="add tokenizer.json to the model's folder"
        ) from error

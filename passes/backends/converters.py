"""Converters with a command line of their own, for NVIDIA cards: ExLlamaV2's EXL2 and ExLlamaV3's EXL3.

Arguments, resume and output as in exllamav2 0.3.2 (`conversion/convert_exl2.py`, `bot_status.py`) and exllamav3 1.6
(`conversion/convert_model.py`). The arguments are held against the packages' own parsers in the tests; neither converter has
ever been run by this project: both need a card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from passes.backends.backend import Backend, Task
from passes.base import Pass
from passes.errors import Reason
from passes.formats.exllama.exl3 import Exl3
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.quantize import Quantize

#: Rows that ExLlamaV2 measures on, of those it quantizes with.
_MEASURED_ROWS = 16
_STATUS = re.compile(r"\[STATUS\](\{.*?\})\[/STATUS\]")
_SPLIT = re.compile(r"(?:Quantized|Captured): .*?layers\.(\d+)\b")


def _only(name: str, kind: str, pass_: Pass) -> Reason:
    return Reason("backend_cannot", f"{name} makes {kind}, not {pass_.text()}", f"an {kind} format, or another backend")


class ExllamaV2(Backend[QuantizeExl2]):
    """`exllamav2.conversion.convert_exl2`: measures, allocates, quantizes, all on one card."""

    name, package, module, versions = "exllamav2", "exllamav2", "exllamav2", "0.3.2"
    takes: ClassVar[type[Pass]] = QuantizeExl2
    resumes: ClassVar[bool] = True

    def not_taken(self, pass_: Pass) -> Reason:
        """Say that it makes EXL2 only."""
        return _only(self.name, "EXL2", pass_)

    def refuses_options(self, pass_: QuantizeExl2) -> Reason | None:
        """Refuse options of layers: it chooses those itself."""
        if pass_.choices:
            return Reason("backend_cannot", "exllamav2 chooses the layers' options itself", "leave `choices` empty")
        return None

    def needs_cuda(self, pass_: QuantizeExl2) -> bool:
        """Answer that it always does."""
        return True

    def options(self, pass_: QuantizeExl2) -> Mapping[str, Any]:
        """Return the bits of the decoder and of the head."""
        return {"bits": pass_.bpw, "head_bits": pass_.head_bits}

    def prepare(self, task: Task[QuantizeExl2]) -> None:
        """Write the calibration text as the parquet file that it reads: tokens back to text, one sample a row."""
        from datasets import Dataset
        from safetensors.torch import load_file
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(task.source)
        rows = [tokenizer.decode(row, skip_special_tokens=True) for row in load_file(task.tokens)["input_ids"]]
        Dataset.from_dict({"text": rows}).to_parquet(self._text(task))

    def command(self, python: Path, task: Task[QuantizeExl2]) -> Sequence[str]:
        """Return the converter's command; a job file of its own in the scratch folder is resumed."""
        options = self.options(task.pass_)
        return (
            str(python), "-m", "exllamav2.conversion.convert_exl2", "-i", str(task.source), "-o", str(task.scratch), "-cf", str(task.out),
            "-b", f"{options['bits']:g}", "-hb", str(options["head_bits"]), "-c", str(self._text(task)), "-r", str(task.samples),
            "-l", str(task.length), "-mr", str(min(_MEASURED_ROWS, task.samples)), "-ml", str(task.length), "-so",
        )  # fmt: skip

    def progress(self, line: str) -> tuple[int, int] | None:
        """Read its status lines: a stage and the share of it that is done, in ten-thousandths here."""
        match = _STATUS.search(line)
        return (round(10_000 * json.loads(match[1])["completion"]), 10_000) if match else None

    @staticmethod
    def _text(task: Task[QuantizeExl2]) -> Path:
        return task.work / "calibration.parquet"


class ExllamaV3(Backend[Quantize]):
    """`exllamav3.conversion.convert_model`: the only tool that makes EXL3."""

    name, package, module, versions = "exllamav3", "exllamav3", "exllamav3", "1.6"
    takes: ClassVar[type[Pass]] = Quantize
    resumes: ClassVar[bool] = True

    def not_taken(self, pass_: Pass) -> Reason:
        """Say that it makes EXL3 only."""
        return _only(self.name, "EXL3", pass_)

    def refuses_options(self, pass_: Quantize) -> Reason | None:
        """Refuse other formats than EXL3."""
        return None if pass_.storage.kind == Exl3.kind else self.not_taken(pass_)

    def needs_cuda(self, pass_: Quantize) -> bool:
        """Answer that it always does."""
        return True

    def options(self, pass_: Quantize) -> Mapping[str, Any]:
        """Return the bits of the decoder and of the head."""
        return {"bits": pass_.storage.bits, "head_bits": 16 if pass_.head is None else pass_.head.bits}

    def command(self, python: Path, task: Task[Quantize]) -> Sequence[str]:
        """Return the converter's command; a scratch folder with a checkpoint is resumed."""
        options = self.options(task.pass_)
        started = (task.scratch / "ckpt" / "job.json").exists()
        return (
            str(python), "-m", "exllamav3.conversion.convert_model", "-i", str(task.source), "-w", str(task.scratch), "-o", str(task.out),
            "-b", f"{options['bits']:g}", "-hb", f"{options['head_bits']:g}", "-cd", str(task.tokens), "-cr", str(task.samples),
            "-cc", str(task.length), *(("-r",) if started else ()),
        )  # fmt: skip

    def progress(self, line: str) -> tuple[int, int] | None:
        """Return the layer that was quantized; how many there are it does not say."""
        match = _SPLIT.search(line)
        return (int(match[1]) + 1, 0) if match else None

"""Libraries that a driver of ours calls in their own Python: llm-compressor, GPTQModel, AutoRound."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from passes.backends.backend import Backend, Task
from passes.base import Pass
from passes.errors import Reason
from passes.formats.awq import Awq
from passes.formats.compressed_tensors import CompressedTensors, FloatQuantized, IntQuantized, PackQuantized
from passes.formats.format import Format
from passes.formats.gptq import Gptq
from passes.quantize.quantize import Quantize

_DRIVERS = Path(__file__).with_name("drivers")


class Library(Backend):
    """A tool that is called through its Python API: `drivers/<name>.py JOB`."""

    #: Method → formats it is made in.
    makes: ClassVar[Mapping[str, tuple[type[Format], ...]]]
    #: Finds (done, total) in a line of its log.
    pattern: ClassVar[re.Pattern[str]]

    def refuses(self, one: Pass) -> Reason | None:
        """It makes its methods in its formats, every matrix alike."""
        if not isinstance(one, Quantize):
            return self._reason(one.text(), "a method and a format")
        forms = self.makes.get(one.method)
        if forms is None:
            return self._reason(f"the method {one.method}", ", ".join(self.makes))
        if not isinstance(one.storage, forms):
            return self._reason(f"{one.method} as {one.storage.label}", ", ".join(form.kind for form in forms))
        if one.assigned or one.head is not None:
            return self._reason("formats that differ by matrix", "one format for all")
        return self.refuses_format(one)

    def refuses_format(self, one: Quantize) -> Reason | None:
        """What it cannot make of a method and format that it makes otherwise."""
        return None

    def _reason(self, what: str, instead: str) -> Reason:
        remedy = f"backend: native, or what {self.name} makes: {instead}"
        return Reason("backend_cannot", f"{self.name} does not make {what}", remedy)

    def command(self, python: Path, task: Task) -> Sequence[str]:
        """The driver on the job file."""
        return (str(python), str(_DRIVERS / f"{self.name}.py"), str(task.job))

    def progress(self, line: str) -> tuple[int, int] | None:
        """As `pattern` finds it."""
        match = self.pattern.search(line)
        return (int(match[1]), int(match[2])) if match else None


class LlmCompressor(Library):
    """llm-compressor: GPTQ, RTN, AWQ, SmoothQuant as compressed-tensors. Its AWQ pins memory, which takes a card."""

    name, package, module, versions = "llmcompressor", "llmcompressor", "llmcompressor", "0.14"
    makes: ClassVar = {
        "gptq": (PackQuantized, IntQuantized), "rtn": (PackQuantized, IntQuantized, FloatQuantized), "awq": (PackQuantized,),
        "smoothquant": (IntQuantized,),
    }  # fmt: skip
    pattern = re.compile(r"\((\d+)/(\d+)\): (?:Calibrating|Propagating)")

    def needs_cuda(self, one: Pass) -> bool:
        """AWQ only."""
        return isinstance(one, Quantize) and one.method == "awq"

    def options(self, one: Pass) -> Mapping[str, Any]:
        """`method` and one group of a compressed-tensors scheme."""
        assert isinstance(one, Quantize)
        assert isinstance(one.storage, CompressedTensors)
        group = {"targets": ["Linear"], **one.storage.scheme()}
        return {"method": one.method, "group": group, "ignore": ["lm_head"], "damping": one.damping}


class GptqModel(Library):
    """GPTQModel: GPTQ at 2, 3, 4 and 8 bits, AWQ. Its AWQ takes a card."""

    name, package, module, versions = "gptqmodel", "gptqmodel", "gptqmodel", "7.5"
    makes: ClassVar = {"gptq": (Gptq,), "awq": (Awq,)}
    pattern = re.compile(r"Quantiz\w+ layer (\d+) of (\d+)")

    def needs_cuda(self, one: Pass) -> bool:
        """AWQ only."""
        return isinstance(one, Quantize) and one.method == "awq"

    def options(self, one: Pass) -> Mapping[str, Any]:
        """Fields of `QuantizeConfig`."""
        assert isinstance(one, Quantize)
        if one.storage.kind == Awq.kind:
            return {"bits": 4, "group_size": one.storage.group_size, "method": "awq", "format": "gemm", "sym": False}
        assert isinstance(one.storage, Gptq)
        return {
            "bits": one.storage.bits, "group_size": one.storage.group_size, "sym": one.storage.symmetric, "desc_act": one.storage.desc_act,
            "damp_percent": one.damping, "method": "gptq", "format": "gptq" if one.storage.version == 1 else "gptq_v2",
        }  # fmt: skip

    @property
    def environment(self) -> Mapping[str, str]:
        """It asks for two workers to load a model, and gives itself one on a small machine."""
        return {"GPTQMODEL_CPU_WORKERS": "2"}


class AutoRound(Library):
    """AutoRound: rounding learned by signed gradient descent (Cheng et al. 2023), stored as GPTQ or AWQ store theirs."""

    name, package, module, versions = "autoround", "auto-round", "auto_round", "0.15"
    makes: ClassVar = {"autoround": (Gptq, Awq)}
    pattern = re.compile(r"Quantizing\b.*?(\d+)/(\d+)")

    def refuses_format(self, one: Quantize) -> Reason | None:
        """It knows no activation order."""
        form = one.storage
        if form.act_order:
            return self._reason("an activation order", "Gptq without one")
        return None

    def needs_cuda(self, one: Pass) -> bool:
        """It runs on processors too, slowly."""
        return False

    def options(self, one: Pass) -> Mapping[str, Any]:
        """Arguments of `AutoRound` and the format of its export."""
        assert isinstance(one, Quantize)
        form = one.storage
        if form.kind == Awq.kind:
            return {"bits": 4, "group_size": form.group_size, "sym": False, "format": "auto_awq"}
        assert form.grid is not None
        return {"bits": form.bits, "group_size": form.group_size, "sym": form.grid.symmetric, "format": "auto_gptq"}

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
from passes.formats.compressed_tensors.config_group import CompressedTensors
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.format import Format
from passes.formats.gptq import Gptq
from passes.quantize.quantize import Quantize

_DRIVERS = Path(__file__).with_name("drivers")


class Library(Backend[Quantize]):
    """A tool that is called through its Python API: `drivers/<name>.py JOB`."""

    takes: ClassVar[type[Pass]] = Quantize
    #: Method → formats it is made in.
    makes: ClassVar[Mapping[str, tuple[type[Format], ...]]]
    #: Finds (done, total) in a line of its log.
    pattern: ClassVar[re.Pattern[str]]

    def not_taken(self, pass_: Pass) -> Reason:
        """Say that it makes a method in a format."""
        return self._reason(pass_.text(), "a method and a format")

    def refuses_options(self, pass_: Quantize) -> Reason | None:
        """Refuse other methods and formats than its own, and matrices that are not all made alike."""
        forms = self.makes.get(pass_.method)
        if forms is None:
            return self._reason(f"the method {pass_.method}", ", ".join(self.makes))
        if not isinstance(pass_.storage, forms):
            return self._reason(f"{pass_.method} as {pass_.storage.label}", ", ".join(form.kind for form in forms))
        if pass_.assigned or pass_.head is not None:
            return self._reason("formats that differ by matrix", "one format for all")
        return self.refuses_format(pass_)

    def refuses_format(self, pass_: Quantize) -> Reason | None:
        """Return what it cannot make of a method and format that it makes otherwise."""
        return None

    def _reason(self, what: str, instead: str) -> Reason:
        remedy = f"backend: native, or what {self.name} makes: {instead}"
        return Reason("backend_cannot", f"{self.name} does not make {what}", remedy)

    def command(self, python: Path, task: Task[Quantize]) -> Sequence[str]:
        """Return the driver's command, on the job file."""
        return (str(python), str(_DRIVERS / f"{self.name}.py"), str(task.job))

    def progress(self, line: str) -> tuple[int, int] | None:
        """Read a step and their number from a line of the log, as `pattern` finds them."""
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

    def needs_cuda(self, pass_: Quantize) -> bool:
        """Answer that only AWQ does."""
        return pass_.method == "awq"

    def options(self, pass_: Quantize) -> Mapping[str, Any]:
        """Return `method` and one group of a compressed-tensors scheme."""
        assert isinstance(pass_.storage, CompressedTensors)
        group = {"targets": ["Linear"], **pass_.storage.scheme()}
        return {"method": pass_.method, "group": group, "ignore": ["lm_head"], "damping": pass_.damping}


class GptqModel(Library):
    """GPTQModel: GPTQ at 2, 3, 4 and 8 bits, AWQ. Its AWQ takes a card."""

    name, package, module, versions = "gptqmodel", "gptqmodel", "gptqmodel", "7.5"
    makes: ClassVar = {"gptq": (Gptq,), "awq": (Awq,)}
    pattern = re.compile(r"Quantiz\w+ layer (\d+) of (\d+)")

    def needs_cuda(self, pass_: Quantize) -> bool:
        """Answer that only AWQ does."""
        return pass_.method == "awq"

    def options(self, pass_: Quantize) -> Mapping[str, Any]:
        """Return fields of `QuantizeConfig`."""
        form = pass_.storage
        if form.kind == Awq.kind:
            return {"bits": 4, "group_size": form.group_size, "method": "awq", "format": "gemm", "sym": False}
        assert isinstance(form, Gptq)
        return {
            "bits": form.bits, "group_size": form.group_size, "sym": form.symmetric, "desc_act": form.desc_act,
            "damp_percent": pass_.damping, "method": "gptq", "format": "gptq" if form.version == 1 else "gptq_v2",
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

    def refuses_format(self, pass_: Quantize) -> Reason | None:
        """Refuse an activation order, which it does not know."""
        if pass_.storage.act_order:
            return self._reason("an activation order", "Gptq without one")
        return None

    def needs_cuda(self, pass_: Quantize) -> bool:
        """Answer that it does not: it runs on processors too, slowly."""
        return False

    def options(self, pass_: Quantize) -> Mapping[str, Any]:
        """Return arguments of `AutoRound` and the format of its export."""
        form = pass_.storage
        if form.kind == Awq.kind:
            return {"bits": 4, "group_size": form.group_size, "sym": False, "format": "auto_awq"}
        assert form.grid is not None
        return {"bits": form.bits, "group_size": form.group_size, "sym": form.grid.symmetric, "format": "auto_gptq"}

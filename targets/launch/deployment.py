"""One server to run, as every launch target reads it: image, arguments, environment, port, cards, memory, seconds to load, mounts."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

from passes.errors import InputError
from passes.record import dataclass
from targets.launch.request import Container, Hardware, Launch, LaunchRequest, Served, Setting

_GIB = 1 << 30
#: Where a checkpoint is mounted in a container, and where images keep what they download.
MODELS, HUB_CACHE = "/models", "/root/.cache/huggingface"
#: Bytes a second that a checkpoint is read with from a cold network disk, and downloaded with. Assumed, and slow on purpose: a budget that
#: is too small kills a server that is still loading.
_READ, _DOWNLOADED = 0.5e9, 200e6
#: Seconds from a started process to a server that answers, without the weights: imports and profile run, then torch.compile and graphs,
#: which vLLM's log gives as 10 to 90 s of models of 1 to 70 billion weights. Assumed.
_START, _COMPILE = 60.0, 90.0
#: How often a probe asks while the server loads, and how many predicted times it may take.
PROBE_SECONDS, PATIENCE = 10, 3
#: Shared memory of a container: vLLM's own Kubernetes page gives 2 GiB (docs.vllm.ai, deployment/k8s); NCCL takes more with each card.
_SHM, _SHM_A_CARD = 2 * _GIB, _GIB
#: Memory of one process of the engine's, assumed: torch, CUDA's context and pinned buffers.
_PROCESS = 4 * _GIB


@dataclass(frozen=True, slots=True)
class Deployment:
    """A server to run. `result`: its checkpoint; `plan`: the digest of the plan that it follows, of which files say the beginning."""

    request: LaunchRequest
    launch: Launch
    served: Served
    hardware: Hardware
    plan: str = ""

    @property
    def name(self) -> str:
        """The name of services and files: a DNS label."""
        label = re.sub(r"[^a-z0-9]+", "-", self.request.served_name.lower()).strip("-")
        return f"m-{label}"[:50].rstrip("-") if not label[:1].isalpha() else label[:50].rstrip("-")

    @property
    def head(self) -> str:
        """What every file begins with: what runs, what it was planned for."""
        hardware, request = self.hardware, self.request
        memory = f"{hardware.memory_bytes / _GIB:.1f} GiB"
        nodes = f", in {hardware.nodes} machines" if hardware.nodes > 1 else ""
        each = f"{hardware.cards} × {hardware.gpu} of {memory}{nodes}"
        where = each if hardware.of_a_node else f"{hardware.gpu} with {memory}"
        plan = f", plan {self.plan[:12]}" if self.plan else ""
        made = "" if not self.served.planned else f"\nNot made yet: `optimize apply` writes {self.served.name}."
        return f"{request.label}\nPlanned by tightfit for {where}, {self.engine}{plan}.{made}"

    @property
    def engine(self) -> str:
        """The engine with its version."""
        return f"{self.request.engine} {self.request.version or ''}".strip()

    @property
    def container(self) -> Container:
        """Its image. Raises InputError where no image is published under the planned version."""
        if self.launch.container is None:
            raise InputError(
                f"no image of {self.request.engine} is published under a version, and `latest` is not what was planned",
                remedy="targets that run it without one: systemd, script",
            )
        return self.launch.container

    @property
    def model(self) -> str:
        """What a container's server is told to serve: a name of the Hub, or where the checkpoint is mounted."""
        return self.served.name if self.served.folder is None else f"{MODELS}/{self.served.folder.name}"

    @property
    def folder(self) -> Path | None:
        """The checkpoint on the machine that these files are written on; None: the Hub has it."""
        return self.served.folder

    @property
    def arguments(self) -> tuple[Setting, ...]:
        """Everything the server in the image is told, model and port included."""
        why = "its mount in the container" if self.folder else "served as it is, from the Hub"
        told = [Setting("model", self.model, why)]
        if self.folder is None and self.served.revision:
            told.append(Setting("revision", self.served.revision, "the commit that was planned for"))
        ends = Setting("port", self.launch.port, "where the probes and the service look for it")
        return (*told, *self.container.arguments, ends)

    @property
    def command(self) -> tuple[str, ...]:
        """The server's own command line on a machine that has the engine, host and port left out; the checkpoint where it lies there."""
        start = self.launch.command[: self.launch.command.index("--config")]
        model, told = (
            str(self.folder or self.model),
            [each for each in self.arguments if each.name not in ("model", "port")],
        )
        named = model if start[:1] == ("vllm",) else flag(Setting("model", model, ""))
        return (*start, named, *map(flag, told))

    @property
    def mounted(self) -> Deployment:
        """The same server as the inside of a container sees it: the checkpoint where it is mounted."""
        return self if self.folder is None else replace(self, served=replace(self.served, folder=Path(self.model)))

    @property
    def asked(self) -> str | None:
        """What `check` is asked about before a start, as a shell has it: the result where it lies, else the server's command line; None
        where `check` reads no such command (TabbyAPI's).
        """
        if self.folder is not None and self.request.served is None:
            return shlex.quote(str(self.folder))
        return None if self.launch.container is None else f"-- {shlex.join(self.command)}"

    @property
    def shm_bytes(self) -> int:
        """Shared memory of one machine's container, in bytes."""
        return _SHM + _SHM_A_CARD * max(0, self.hardware.of_a_node - 1)

    @property
    def cpus(self) -> int:
        """Cores that one machine's server needs: its API server, its engine core, and a worker a card (docs.vllm.ai, optimization)."""
        return 2 + max(1, self.hardware.of_a_node)

    @property
    def host_bytes(self) -> int:
        """Memory of the machine that the server needs, in bytes: of its processes, and on a processor all that was planned."""
        planned = 0 if self.hardware.of_a_node else self.served.bytes + self.request.kv_cache_bytes
        return _PROCESS * self.cpus + self.shm_bytes + math.ceil(planned / _GIB) * _GIB

    @property
    def load_seconds(self) -> float:
        """Predicted seconds from start to the first answer, on a first start: weights read, or downloaded, and the engine's own."""
        weights = self.served.bytes / (_READ if self.folder else _DOWNLOADED)
        compiled = 0.0 if self.request.settings.enforce_eager or not self.hardware.of_a_node else _COMPILE
        return weights + _START + compiled

    @property
    def startup_probes(self) -> int:
        """How many failed probes, one every `PROBE_SECONDS`, a server may take to start."""
        return math.ceil(PATIENCE * self.load_seconds / PROBE_SECONDS)

    @property
    def startup_why(self) -> str:
        """Why it is given so long."""
        how = "read at 0.5 GB/s" if self.folder else "downloaded at 200 MB/s"
        weights = f"{self.served.bytes / 1e9:.1f} GB {how}"
        return f"{PATIENCE} × the {self.load_seconds:.0f} s predicted: {weights}, and the engine's start (assumed)"

    def require_one_node(self, target: str, others: str) -> None:
        """Refuse a launch over several machines, naming targets that do it (InputError)."""
        if self.hardware.nodes > 1:
            raise InputError(
                f"{target} runs a server on one machine; this plan takes {self.hardware.cards} cards of {self.hardware.nodes}",
                remedy=f"targets that spread a server over machines: {others}",
            )

    def require_cards(self, asks: str) -> None:
        """Refuse a server that runs on a processor (InputError). `asks`: what the target does with cards, as a sentence."""
        if not self.hardware.of_a_node:
            raise InputError(
                f"{asks}; {self.engine} runs on a processor", remedy="targets that do: kubernetes, compose"
            )


def flag(setting: Setting) -> str:
    """Return a setting as one word of a command line: `--max-model-len=8000`, `--enforce-eager`."""
    return f"--{setting.name}" if setting.value is True else f"--{setting.name}={spelled(setting.value)}"


def spelled(value: object) -> str:
    """Return a value as the command line takes it: mappings and lists as JSON."""
    return json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)


def gibibytes(size: int) -> str:
    """Return bytes as Kubernetes writes them: `4Gi`."""
    return f"{math.ceil(size / _GIB)}Gi"

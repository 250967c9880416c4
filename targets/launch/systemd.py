"""A systemd unit that keeps an engine running on a machine (systemd.service(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from targets.launch.before_start import WHY, look
from targets.launch.deployment import Deployment
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget
from targets.launch.write import FOLDER


class Systemd(LaunchTarget):
    """One unit file, for `/etc/systemd/system`."""

    name: ClassVar[str] = "systemd"
    title: ClassVar[str] = "a systemd unit, one machine, no container"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return the unit, named after what is served."""
        deployment.require_one_node(self.name, "skypilot, ray-serve, kuberay, dynamo")
        return (LaunchFile(f"{deployment.name}.service", "\n".join(_lines(deployment)) + "\n"),)


def _lines(deployment: Deployment) -> Iterator[str]:
    launch, served = deployment.launch, deployment.served
    yield from (f"# {line}" for line in deployment.head.splitlines())
    yield from ("[Unit]", f"Description={description(deployment)}", "After=network-online.target")
    yield from ("Wants=network-online.target", "StartLimitIntervalSec=600", "StartLimitBurst=5", "", "[Service]")
    yield "# What the server listens on; HOST=0.0.0.0 opens it to other machines."
    yield f"Environment=HOST=127.0.0.1 PORT={launch.port}"
    yield "# What only this machine knows: TIGHTFIT_ENGINE (the engine's Python) or TABBYAPI, HF_TOKEN."
    yield f"EnvironmentFile=-/etc/tightfit/{deployment.name}.env"
    if cards := deployment.hardware.of_a_node:
        yield "# A profile run that another process shares the card with leaves a smaller cache for good: wait until it is free."
        yield f"ExecStartPre=/bin/bash -c '{_wait(cards)}'"
    if served.folder is not None and deployment.request.served is None:
        yield f"ExecStart={unit_word(f'{served.folder}/{FOLDER}/run.sh')}"
    else:
        yield from looks_first(deployment.asked)
        yield "# Found on the PATH, which the file above may set."
        yield f"ExecStart=/usr/bin/env {' '.join(map(unit_word, deployment.command))} --host=${{HOST}} --port=${{PORT}}"
    yield f"# Loading takes minutes: the unit counts as started when the process is, and {launch.health} says when it answers."
    yield from ("Type=exec", "Restart=on-failure", "RestartSec=20", "TimeoutStopSec=120")
    yield from (
        "# Pinned buffers are locked memory.",
        "LimitMEMLOCK=infinity",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    )


def looks_first(asked: str | None) -> Iterator[str]:
    """Give the lines of a unit that look whether this machine holds the server. `asked`: what `check` is asked about, if anything."""
    if asked is not None:
        yield f"# {WHY}"
        yield f"ExecStartPre=/bin/sh -c {unit_word(look(asked))}"


def _wait(cards: int) -> str:
    """A shell command that ends when less than 1,000 MiB of each card are in use, or fails after two minutes."""
    used = f"nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n {cards} | sort -n | tail -n 1"
    loop = f'for i in $(seq 60); do u=$({used}); [ "$u" -lt 1000 ] && exit 0; sleep 2; done; exit 1'
    return _unexpanded(loop)


def description(deployment: Deployment) -> str:
    """Return what a unit is called for people; systemd expands nothing in it, and it has no line of its own breaks."""
    return " ".join(f"{deployment.request.served_name} by tightfit".replace("%", "%%").rstrip("\\").split())


def unit_word(word: str) -> str:
    """Return a word of a unit's command line, quoted where it has spaces or quotes; systemd expands nothing in it."""
    word = _unexpanded(word)
    if not re.search(r"[\s'\"\\]", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unexpanded(text: str) -> str:
    return text.replace("%", "%%").replace("$", "$$")

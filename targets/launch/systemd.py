"""A systemd unit that keeps an engine running on a machine (systemd.service(5))."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from targets.launch.request import Launch, LaunchFile
from targets.launch.target import LaunchTarget
from targets.launch.write import FOLDER

_UNIT = """\
[Unit]
Description=@LABEL@
After=network-online.target
Wants=network-online.target

[Service]
WorkingDirectory=@RESULT@
# What run.sh listens on; HOST=0.0.0.0 opens it to other machines.
Environment=HOST=127.0.0.1 PORT=@PORT@
ExecStart=@RESULT@/@FOLDER@/run.sh
# Loading takes minutes: the unit counts as started when the script is, and /@HEALTH@ says when the engine answers.
Type=exec
Restart=on-failure
RestartSec=10

[Install]
WantedBy=multi-user.target
"""


class Systemd(LaunchTarget):
    """One unit file, for `/etc/systemd/system`."""

    name: ClassVar[str] = "systemd"

    def files(self, launch: Launch, result: Path) -> tuple[LaunchFile, ...]:
        """Return the unit, named after the result; percent signs and spaces of its path as systemd wants them."""
        place = str(result).replace("%", "%%").replace(" ", "\\x20")
        words = {
            "@LABEL@": f"{result.name} by tightfit", "@RESULT@": place, "@FOLDER@": FOLDER, "@PORT@": str(launch.port),
            "@HEALTH@": launch.health.lstrip("/"),
        }  # fmt: skip
        text = _UNIT
        for word, value in words.items():
            text = text.replace(word, value)
        return (LaunchFile(f"{result.name}.service", text),)

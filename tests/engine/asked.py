"""What the engine's own Python answers: a script beside the tests, run there once on a file of questions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def answers_of(engine_python: Path, script: str, questions: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Return the JSON lines that a script of this folder prints, by their `name`; it may take so many seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(engine_python), str(Path(__file__).with_name(script)), str(questions)],
        capture_output=True, text=True, env=environment, check=False, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {str(line["name"]): line for line in lines}

"""The plan that the README shows is what the command prints. `UPDATE_README=1 pytest tests/planner/test_readme.py` writes it anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEC = "examples/qwen2.5-32b-rtx4090.yaml"


def printed(folder: Path) -> str:
    """What the command prints, but for what depends on the machine: what apply would take, where the plan is saved."""
    command = [sys.executable, "-m", "planner.cli", "plan", SPEC, "-o", str(folder / "qwen.plan.json")]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"HF_HUB_OFFLINE": "1"}
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    lines = [
        line.rstrip() for line in shown.splitlines() if not line.startswith(("  apply needs", "  Next:", "  Not here"))
    ]
    text = re.sub(r" Saved to .*", "", "\n".join(lines)).strip("\n")
    return "\n".join(line for line in text.splitlines() if not line.startswith("  The plan can be read"))


def test_the_readme_shows_what_the_command_prints(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(f"$ optimize plan {SPEC}\n", 1)
    shown, after = rest.split("```", 1)
    now = f"\n{printed(tmp_path)}\n"
    if os.environ.get("UPDATE_README"):
        readme.write_text(f"{before}$ optimize plan {SPEC}\n{now}```{after}")
    assert os.environ.get("UPDATE_README") or shown == now

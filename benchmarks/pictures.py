"""Takes the pictures of `docs/images/` anew, in Chromium: of plans that are made for it, and of a verified result where one is named.

python -m benchmarks.pictures [--result FOLDER] [--to FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planner.plan.make import plan
from planner.plan.saved import save
from planner.report.facts import facts_of
from planner.report.page import page
from planner.report.view import view

ROOT = Path(__file__).parent.parent
BROWSER = Path(os.environ.get("TIGHTFIT_BROWSER") or Path.home() / ".cache/tightfit/browser/bin/python")
_H100 = """\
model: meta-llama/Llama-3.3-70B-Instruct
target: { gpu: H100 SXM, count: 1 }
engine: vllm
workload: { context: 8192, concurrency: 4, input_tokens: 2000, output_tokens: 400 }
goals: { ttft: 4 s, decode: 20 tok/s, quality: { max_perplexity_increase: 5% }, prefer: quality }
"""


def made(folder: Path, name: str, spec: str) -> Path:
    """Plan a spec, and write its page. Returns where that is."""
    (folder / f"{name}.yaml").write_text(spec, encoding="utf-8")
    save(plan(folder / f"{name}.yaml").document, folder / f"{name}.plan.json")
    return written(folder, name, folder / f"{name}.plan.json")


def written(folder: Path, name: str, what: Path) -> Path:
    """Write the page of a plan or a result."""
    file = folder / f"{name}.html"
    file.write_text(page(view(facts_of(what))), encoding="utf-8")
    return file


def of_reports(folder: Path, result: Path | None) -> Iterator[dict[str, Any]]:
    """Give the pictures of reports."""
    large = made(folder, "h100", _H100)
    yield {
        "url": large.as_uri(), "to": "report-70b-h100.png", "width": 1100, "height": 1240, "at": "#memory",
        "hover": "#choices .point.chosen[role=img]",
    }  # fmt: skip
    small = made(folder, "phone", (ROOT / "examples/qwen2.5-32b-rtx4090.yaml").read_text(encoding="utf-8"))
    yield {"url": small.as_uri(), "to": "report-phone.png", "width": 390, "height": 1000, "phone": True}
    if result is not None:
        dark = written(folder, "result", result)
        yield {
            "url": dark.as_uri(),
            "to": "report-result-dark.png",
            "width": 1200,
            "height": 900,
            "dark": True,
            "at": "#goals",
        }


def of_sliders(url: str) -> Iterator[dict[str, Any]]:
    """Give the picture of the what-if page."""
    yield {"url": f"{url}#clients=64", "to": "what-if.png", "width": 1200, "height": 1000, "wait": "#others li"}


def main() -> None:
    """Make the pages, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, help="the folder of a result that `optimize verify` has measured")
    parser.add_argument("--to", type=Path, default=ROOT / "docs/images")
    asked = parser.parse_args()
    serve = [sys.executable, "-m", "planner.cli", "serve-ui", str(ROOT / "examples/llama-3.1-8b-l4.yaml")]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
        jobs = [*of_reports(Path(folder), asked.result), *of_sliders(url)]
        told = Path(folder) / "jobs.json"
        told.write_text(
            json.dumps([{**job, "to": str(asked.to.resolve() / job["to"])} for job in jobs]), encoding="utf-8"
        )
        try:
            subprocess.run([BROWSER, Path(__file__).with_name("shoot.py"), told], check=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()

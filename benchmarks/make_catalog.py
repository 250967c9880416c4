"""Makes passes/ir/catalog/models.jsonl, the bundled offline catalog, from folders of config files.

Usage: python -m benchmarks.make_catalog CONFIGS [CONFIGS ...]

Each CONFIGS is a folder of `ORG--NAME.json` files (config.json facts with a `_provenance` object that says where they come
from). Later folders win where two name the same model. `benchmarks/data/more_models.jsonl` adds models that published tables
speak of: values recalled from their repositories, some as changes to a `base` that is in the folders.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MORE = Path(__file__).resolve().parent / "data" / "more_models.jsonl"
TARGET = Path(__file__).resolve().parent.parent / "passes" / "ir" / "catalog" / "models.jsonl"


def read(folder: Path) -> dict[str, dict[str, object]]:
    """The models of one folder, by Hub id."""
    models = {}
    for path in sorted(folder.glob("*--*.json")):
        config = json.loads(path.read_text())
        provenance = config.pop("_provenance")
        model = path.stem.replace("--", "/", 1)
        models[model] = {"id": model, "config": config, "provenance": provenance}
    return models


def more(models: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The additional models, completed by their bases."""
    added = {}
    for line in MORE.read_text().splitlines():
        row = json.loads(line)
        base = models[row["base"]] if "base" in row else {"config": {}}
        config = {**base["config"], **row["config"]}  # type: ignore[dict-item]
        source = "values known from the published Hugging Face repo (recalled; not copied from a file here)"
        if "base" in row:
            source += f"; the rest as in {row['base']}"
        added[row["id"]] = {"id": row["id"], "config": config, "provenance": {"source": source, "confidence": "memory"}}
    return added


def main(folders: list[str]) -> None:
    models: dict[str, dict[str, object]] = {}
    for folder in folders:
        models |= read(Path(folder))
    models = more(models) | models
    lines = [json.dumps(models[model], ensure_ascii=False) + "\n" for model in sorted(models, key=str.lower)]
    TARGET.write_text("".join(lines))
    print(f"{TARGET}: {len(lines)} models, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])

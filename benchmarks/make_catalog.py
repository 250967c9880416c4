"""Makes passes/ir/catalog/models.jsonl, the bundled offline catalog, from folders of config files.

Usage: python -m benchmarks.make_catalog CONFIGS [CONFIGS ...]

Each CONFIGS is a folder of `ORG--NAME.json` files (config.json facts with a `_provenance` object that says where they come
from). Later folders win where two name the same model. `benchmarks/data/more_models.jsonl` adds models that published tables
speak of: values recalled from their repositories, some as changes to a `base` that is in the folders.
`benchmarks/data/corrections.jsonl` says better what a folder's file has wrong, with its source. What of an entry is recalled and was not
checked is said in its provenance: `unchecked`, and `spread`, the relative 90 % half width of the bytes of its weights that follows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from passes.ir.names import convention

MORE = Path(__file__).resolve().parent / "data" / "more_models.jsonl"
CORRECTIONS = MORE.with_name("corrections.jsonl")
TARGET = Path(__file__).resolve().parent.parent / "passes" / "ir" / "catalog" / "models.jsonl"

#: Relative half widths: FP8 files with and without attention in FP8 differ by a fifth; recalled shapes that were counted were all right.
QUANTIZATION_SPREAD, SHAPES_SPREAD = 0.1, 0.03


def read(folder: Path) -> dict[str, dict[str, object]]:
    """The models of one folder, by Hub id."""
    models = {}
    for path in sorted(folder.glob("*--*.json")):
        config = json.loads(path.read_text(), object_pairs_hook=_kept)
        provenance = config.pop("_provenance")
        model = path.stem.replace("--", "/", 1)
        models[model] = {"id": model, "config": config, "provenance": provenance}
    return models


def _kept(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object without the values that only say that something long was left out."""
    return {key: value for key, value in pairs if not (isinstance(value, str) and value.startswith("dropped: "))}


def more(models: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The additional models, completed by their bases (less the fields that a row is `without`); a row may say its own source, and how
    many parameters are published, drafting layers apart.
    """
    added = {}
    for line in MORE.read_text().splitlines():
        row = json.loads(line)
        base = models[row["base"]]["config"] if "base" in row else {}
        assert isinstance(base, dict)
        config = {field: value for field, value in base.items() if field not in row.get("without", ())} | row["config"]
        source = row.get(
            "source", "values known from the published Hugging Face repo (recalled; not copied from a file here)"
        )
        if "base" in row and "source" not in row:
            source += f"; the rest as in {row['base']}"
        provenance = {"source": source, "confidence": row.get("confidence", "memory")}
        if "param_count" in row:
            provenance |= {"param_count": row["param_count"], "param_count_computed": row["param_count"]}
        added[row["id"]] = {"id": row["id"], "config": config, "provenance": provenance}
    return added


def corrected(models: dict[str, dict[str, object]]) -> None:
    """Put what is known better in place of what the folders say; a row that quotes the file itself says so (`confidence`)."""
    for line in CORRECTIONS.read_text().splitlines():
        row = json.loads(line)
        model = models[row["id"]]
        model["config"] |= row["config"]
        told = {"confidence": row["confidence"]} if "confidence" in row else {}
        model["provenance"] |= {"corrected": row["source"], **told}  # type: ignore[operator]


def unchecked(model: dict[str, object]) -> dict[str, object]:
    """What of an entry nobody checked: how a recalled checkpoint is quantized, or recalled shapes that no published count confirms."""
    config, provenance = model["config"], model["provenance"]
    assert isinstance(config, dict)
    assert isinstance(provenance, dict)
    if provenance["confidence"] != "memory":
        return {}
    if "quantization_config" in config or "hf_quant_config" in config:
        row = convention(str(model["id"]), str(model["id"]))
        return {"unchecked": "how its weights are stored is", "spread": row["spread"] if row else QUANTIZATION_SPREAD}
    if provenance.get("param_count") != provenance.get("param_count_computed") or not provenance.get("param_count"):
        return {"unchecked": "its shapes are", "spread": SHAPES_SPREAD}
    return {}


def main(folders: list[str]) -> None:
    models: dict[str, dict[str, object]] = {}
    for folder in folders:
        models |= read(Path(folder))
    models = more(models) | models
    corrected(models)
    for model in models.values():
        model["provenance"] |= unchecked(model)  # type: ignore[operator]
    lines = [json.dumps(models[model], ensure_ascii=False) + "\n" for model in sorted(models, key=str.lower)]
    TARGET.write_text("".join(lines))
    print(f"{TARGET}: {len(lines)} models, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])

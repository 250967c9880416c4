"""Make `targets/gpus.yaml` from a table of cards (one JSON object a line, with a source for each figure).

    python -m benchmarks.make_gpus gpus.jsonl

Adds aliases, the totals that real vLLM start-ups printed where the table has none, and the cards below.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "targets" / "gpus.yaml"
KEEP = (
    "name", "vendor", "arch", "memory_gb_nominal", "memory_type", "driver_total_mib", "cuda_visible_gib", "bandwidth_gb_s",
    "fp16_bf16_dense_tflops", "fp16_fp16acc_dense_tflops", "fp8_dense_tflops", "int8_dense_tops", "fp4_dense_tflops",
    "compute_capability", "pcie", "interconnect_gb_s_bidirectional", "source_url", "sources", "from_memory_fields", "derived_fields",
)  # fmt: skip

#: Totals in GiB as vLLM start-ups printed them (benchmarks/data/vllm_memory_logs.jsonl), which is what it takes its share of.
PRINTED = {
    "A100 SXM4 80GB": 79.15, "A100 PCIe 80GB": 79.15, "A10G": 22.06, "A40": 44.35, "L4": 22.06, "L40": 44.4, "B300 SXM": 267.7,
    "GB10": 121.69, "RTX 5090": 31.36, "RTX PRO 6000 Blackwell Server": 95.0, "B200 SXM": 178.35,
}  # fmt: skip
_LOGS = "start-up logs, benchmarks/data/vllm_memory_logs.jsonl"
#: Where not from those.
PRINTED_BY = {"B200 SXM": "torch's messages when out of memory: 'a total capacity of 178.35 GiB'"}

#: Names that people and NVML use, by card. A name under `bare` is answered with a note on what it was read as.
ALIASES = {
    "RTX 3060 12GB": ["RTX 3060"], "RTX 3080 10GB": ["RTX 3080"], "RTX 4060 Ti 16GB": ["RTX 4060 Ti"],
    "RTX 5060 Ti 16GB": ["RTX 5060 Ti"], "T4": ["T4 16GB"], "A10": ["A10 24GB"], "A10G": ["A10G 24GB"], "L4": ["L4 24GB"],
    "A16 (per GPU, 4 per board)": ["A16"], "A30": ["A30 24GB"],
    "A100 PCIe 40GB": ["A100-PCIE-40GB"], "A100 SXM4 40GB": ["A100-SXM4-40GB", "A100-SXM-40GB", "A100 40GB"],
    "A100 PCIe 80GB": ["A100 80GB PCIe", "A100-PCIE-80GB"], "A100 SXM4 80GB": ["A100-SXM4-80GB", "A100-SXM-80GB", "A100 SXM 80GB", "A100 SXM"],
    "RTX 6000 Ada": ["RTX 6000 Ada Generation"], "RTX 5000 Ada": ["RTX 5000 Ada Generation"], "RTX 4000 Ada": ["RTX 4000 Ada Generation"],
    "RTX PRO 6000 Blackwell Workstation": ["RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"],
    "RTX PRO 6000 Blackwell Server": ["RTX PRO 6000 Blackwell Server Edition"],
    "H100 PCIe": ["H100 PCIe 80GB", "H100-PCIe"], "H100 SXM": ["H100 80GB HBM3", "H100 SXM5", "H100 SXM 80GB", "H100 SXM5 80GB"],
    "H100 NVL (94GB)": ["H100 NVL"], "H200 SXM": ["H200 SXM5", "H200 141GB", "H200 SXM 141GB"],
    "GH200 96GB (HBM3)": ["GH200 96GB", "GH200 480GB"], "GH200 144GB (HBM3e)": ["GH200 144GB"], "H20 96GB": ["H20"],
    "B200 SXM": ["B200 180GB", "B200 SXM 180GB"], "GB200 (per GPU)": ["GB200", "GB200 192GB"], "B300 SXM": ["B300 SXM6 AC", "B300 288GB"],
    "GB300 (per GPU)": ["GB300"], "V100 SXM2 32GB": ["V100-SXM2-32GB", "V100 32GB"], "MI250X (board, 2 GCDs)": ["MI250X"],
    "RX 7900 XTX": ["RX 7900XTX"],
}  # fmt: skip
BARE = {
    "A100 SXM4 80GB": ["A100", "A100 80GB"], "H100 SXM": ["H100", "H100 80GB"], "H200 SXM": ["H200"], "B200 SXM": ["B200"],
    "B300 SXM": ["B300"], "V100 SXM2 32GB": ["V100"],
}  # fmt: skip

#: Cards the table lacks. Figures from the makers' data sheets and the TechPowerUp database; laptop parts at full power limit.
MORE: list[dict[str, Any]] = [
    {"name": "L20", "arch": "Ada", "memory_gb_nominal": 48, "memory_type": "GDDR6", "driver_total_mib": 46068, "bandwidth_gb_s": 864,
     "fp16_bf16_dense_tflops": 119.5, "fp8_dense_tflops": 239, "int8_dense_tops": 239, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16"},
    {"name": "A800 SXM4 80GB", "arch": "Ampere", "memory_gb_nominal": 80, "memory_type": "HBM2e", "driver_total_mib": 81920, "bandwidth_gb_s": 2039,
     "fp16_bf16_dense_tflops": 312, "int8_dense_tops": 624, "compute_capability": "8.0", "pcie": "PCIe 4.0 x16",
     "interconnect_gb_s_bidirectional": 400, "aliases": ["A800", "A800-SXM4-80GB", "A800 80GB"]},
    {"name": "GB10", "arch": "Blackwell", "memory_gb_nominal": 128, "memory_type": "LPDDR5X", "driver_total_mib": 122502, "bandwidth_gb_s": 273,
     "fp16_bf16_dense_tflops": 125, "fp8_dense_tflops": 250, "int8_dense_tops": 250, "fp4_dense_tflops": 500, "compute_capability": "12.1",
     "pcie": None, "aliases": ["DGX Spark", "GB10 (DGX Spark)", "GB10 (DGX Spark class)"]},
    {"name": "RTX 3080 Laptop 16GB", "arch": "Ampere", "memory_gb_nominal": 16, "memory_type": "GDDR6", "bandwidth_gb_s": 448,
     "fp16_bf16_dense_tflops": 37.9, "int8_dense_tops": 151.7, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16", "aliases": ["RTX 3080 Laptop GPU"]},
    {"name": "RTX 4060 Laptop", "arch": "Ada", "memory_gb_nominal": 8, "memory_type": "GDDR6", "bandwidth_gb_s": 256,
     "fp16_bf16_dense_tflops": 29, "fp8_dense_tflops": 58, "int8_dense_tops": 116, "compute_capability": "8.9", "pcie": "PCIe 4.0 x8",
     "aliases": ["RTX 4060 Laptop GPU"]},
    {"name": "RTX 4070 Laptop", "arch": "Ada", "memory_gb_nominal": 8, "memory_type": "GDDR6", "bandwidth_gb_s": 256,
     "fp16_bf16_dense_tflops": 40, "fp8_dense_tflops": 80, "int8_dense_tops": 160, "compute_capability": "8.9", "pcie": "PCIe 4.0 x8",
     "aliases": ["RTX 4070 Laptop GPU"]},
    {"name": "RTX 4080 Laptop", "arch": "Ada", "memory_gb_nominal": 12, "memory_type": "GDDR6", "bandwidth_gb_s": 432,
     "fp16_bf16_dense_tflops": 67.6, "fp8_dense_tflops": 135, "int8_dense_tops": 270, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16",
     "aliases": ["RTX 4080 Laptop GPU"]},
    {"name": "RTX 4090 Laptop", "arch": "Ada", "memory_gb_nominal": 16, "memory_type": "GDDR6", "bandwidth_gb_s": 576,
     "fp16_bf16_dense_tflops": 78, "fp8_dense_tflops": 156, "int8_dense_tops": 312, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16",
     "aliases": ["RTX 4090 Laptop GPU"]},
    {"name": "RTX 5090 Laptop", "arch": "Blackwell", "memory_gb_nominal": 24, "memory_type": "GDDR7", "bandwidth_gb_s": 896,
     "fp16_bf16_dense_tflops": 63, "fp8_dense_tflops": 127, "int8_dense_tops": 254, "fp4_dense_tflops": 507, "compute_capability": "12.0",
     "pcie": "PCIe 5.0 x16", "aliases": ["RTX 5090 Laptop GPU"]},
]  # fmt: skip


def entry(row: dict[str, Any]) -> dict[str, Any]:
    """One line of the catalog: the table's figures without empty fields, and the card's other names."""
    out = {key: row[key] for key in KEEP if row.get(key) not in (None, [], {})}
    name = row["name"]
    if name in PRINTED:
        out["cuda_visible_gib"] = PRINTED[name]
        out["sources"] = {
            **out.get("sources", {}),
            "cuda_visible_gib": PRINTED_BY.get(name, _LOGS),
        }
    bare = BARE.get(name, [])
    out["aliases"] = sorted({*ALIASES.get(name, []), *row.get("aliases", []), *bare})
    if bare:
        out["bare"] = bare
    out.setdefault("compute_capability", None)
    return out


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    added = [
        {
            "vendor": "NVIDIA",
            "source_url": "NVIDIA data sheets; TechPowerUp GPU database",
            "from_memory_fields": ["all"],
            **row,
        }
        for row in MORE
    ]
    head = (
        "# Cards, one a line. Made by benchmarks/make_gpus.py; do not edit. Rates are dense; memory as nominal (GB), as the driver\n"
        "# prints it (MiB) and as CUDA shows it (GiB). `from_memory_fields` have no source; `derived_fields` follow a maker's ratio.\n"
    )
    lines = [f"- {re.sub(r'[ ]+', ' ', json.dumps(entry(row), ensure_ascii=False))}" for row in [*rows, *added]]
    OUT.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} cards -> {OUT}")


if __name__ == "__main__":
    main()

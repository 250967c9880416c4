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
    "compute_capability", "pcie", "interconnect_gb_s_bidirectional", "bridge", "source_url", "offered", "sources", "from_memory_fields", "derived_fields",
)  # fmt: skip

#: Totals in GiB as vLLM start-ups printed them (benchmarks/data/vllm_memory_logs.jsonl), which is what it takes its share of.
PRINTED = {
    "A100 SXM4 80GB": 79.15, "A100 PCIe 80GB": 79.15, "A10G": 22.06, "A40": 44.35, "L4": 22.06, "L40": 44.4, "B300 SXM": 267.7,
    "GB10": 121.69, "RTX 4090": 23.52, "RTX 5090": 31.36, "RTX PRO 6000 Blackwell Server": 95.0, "B200 SXM": 178.35,
}  # fmt: skip
#: Cards whose tensor cores sum in 16 bits twice as fast as in 32.
_GEFORCE = re.compile(r"RTX [2-5]0[5-9]0\b")
#: Cards that NVLink joins by a bridge of two, which is bought apart (their data sheets); boards named NVL come with theirs.
BRIDGED = frozenset({
    "RTX 2070 SUPER", "RTX 2080 SUPER", "RTX 2080 Ti", "RTX 3090", "RTX 3090 Ti", "A30", "A40", "A100 PCIe 40GB", "A100 PCIe 80GB",
    "RTX A5000", "RTX A6000", "H100 PCIe",
})  # fmt: skip
_LOGS = "start-up logs, benchmarks/data/vllm_memory_logs.jsonl"
#: Where not from those. An RTX 4090 showed 23.64 GiB under drivers before 550, and shows 23.99 under WSL.
PRINTED_BY = {"B200 SXM": "torch's messages when out of memory: 'a total capacity of 178.35 GiB'"}

#: Cards that nobody is told to buy in another's place: made for one country's export rules, or the one chip of a machine of its own.
NOT_OFFERED = {"A800 SXM4 80GB", "H800 SXM", "H800 PCIe", "H20 96GB", "H20-3e", "GB10"}

#: Names that people and NVML use, by card. A name under `bare` is answered with a note on what it was read as.
ALIASES = {
    "T4": ["T4 16GB"], "A10": ["A10 24GB"], "A10G": ["A10G 24GB"], "L4": ["L4 24GB"],
    "A16 (per GPU, 4 per board)": ["A16"], "A30": ["A30 24GB"],
    "A100 PCIe 40GB": ["A100-PCIE-40GB"], "A100 SXM4 40GB": ["A100-SXM4-40GB", "A100-SXM-40GB", "A100 40GB"],
    "A100 PCIe 80GB": ["A100 80GB PCIe", "A100-PCIE-80GB"], "A100 SXM4 80GB": ["A100-SXM4-80GB", "A100-SXM-80GB", "A100 SXM 80GB", "A100 SXM", "A100 NVLINK 80GB"],
    "RTX 6000 Ada": ["RTX 6000 Ada Generation"], "RTX 5000 Ada": ["RTX 5000 Ada Generation"], "RTX 4000 Ada": ["RTX 4000 Ada Generation"],
    "RTX PRO 6000 Blackwell Workstation": [
        "RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Workstation", "RTX PRO 6000 Workstation Edition",
    ],
    "RTX PRO 6000 Blackwell Server": [
        "RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Server", "RTX PRO 6000 Server Edition",
    ],
    "H100 PCIe": ["H100 PCIe 80GB", "H100-PCIe"], "H100 SXM": ["H100 80GB HBM3", "H100 Mega 80GB", "H100 SXM5", "H100 SXM 80GB", "H100 SXM5 80GB", "H100 NVLINK 80GB"],
    "H100 NVL (94GB)": ["H100 NVL"], "H200 SXM": ["H200 SXM5", "H200 141GB", "H200 SXM 141GB"],
    "GH200 96GB (HBM3)": ["GH200 96GB", "GH200 480GB"], "GH200 144GB (HBM3e)": ["GH200 144GB", "GH200 144G HBM3e"], "H20 96GB": ["H20-96GB"],
    "B200 SXM": ["B200 180GB", "B200 SXM 180GB"], "GB200 (per GPU)": ["GB200", "GB200 192GB", "GB200 NVL72", "GB200 NVL4"], "B300 SXM": ["B300 SXM6 AC", "B300 288GB"],
    "GB300 (per GPU)": ["GB300", "GB300 NVL72"], "V100 SXM2 32GB": ["V100-SXM2-32GB", "V100-SXM3-32GB", "V100 32GB"],
    "RX 7900 XTX": ["RX 7900XTX"],
}  # fmt: skip
BARE = {
    "RTX PRO 6000 Blackwell Workstation": ["RTX PRO 6000"],
    "A100 SXM4 80GB": ["A100 80GB"], "H100 SXM": ["H100", "H100 80GB"], "H200 SXM": ["H200"], "B200 SXM": ["B200"],
    "B300 SXM": ["B300"], "V100 SXM2 16GB": ["V100", "V100 16GB"], "A100 SXM4 40GB": ["A100 40GB"], "V100 SXM2 32GB": ["V100 32GB"],  # the smallest of its name: no newer vLLM runs on any
}  # fmt: skip

#: Names that cards of unlike memory share: asked back, unless its memory is seen.
SHARED = {
    "A100": ["A100 SXM4 40GB", "A100 PCIe 40GB", "A100 SXM4 80GB", "A100 PCIe 80GB"],
    "RTX 3060": ["RTX 3060 12GB", "RTX 3060 8GB"], "RTX 3080": ["RTX 3080 10GB", "RTX 3080 12GB"],
    "RTX 6000": ["RTX 6000 Ada", "RTX PRO 6000 Blackwell Workstation", "Quadro RTX 6000"], "RTX 5000": ["RTX 5000 Ada", "Quadro RTX 5000"],
    "RTX 3080 Laptop": ["RTX 3080 Laptop 16GB", "RTX 3080 Laptop 8GB"], "RTX 3080 Laptop GPU": ["RTX 3080 Laptop 16GB", "RTX 3080 Laptop 8GB"],
    "RTX 4060 Ti": ["RTX 4060 Ti 8GB", "RTX 4060 Ti 16GB"], "RTX 5060 Ti": ["RTX 5060 Ti 8GB", "RTX 5060 Ti 16GB"],
    "GH200": ["GH200 96GB (HBM3)", "GH200 144GB (HBM3e)"], "H20": ["H20 96GB", "H20-3e"],
    "Orin": [
        "Jetson AGX Orin 64GB", "Jetson AGX Orin 32GB", "Jetson Orin NX 16GB", "Jetson Orin Nano Super 8GB", "Jetson Orin Nano 8GB",
        "Jetson Orin Nano 4GB",
    ],
    "Orin Nano": ["Jetson Orin Nano Super 8GB", "Jetson Orin Nano 8GB", "Jetson Orin Nano 4GB"],
    "Jetson Orin Nano": ["Jetson Orin Nano Super 8GB", "Jetson Orin Nano 8GB", "Jetson Orin Nano 4GB"],
    "AGX Orin": ["Jetson AGX Orin 64GB", "Jetson AGX Orin 32GB"], "Jetson AGX Orin": ["Jetson AGX Orin 64GB", "Jetson AGX Orin 32GB"],
}  # fmt: skip

#: Names that mean a card only as they stand, makers' names included: Google Cloud's `nvidia-tesla-…`, which name one size each.
WHOLE = {
    "RTX PRO 6000 Blackwell Server": ["nvidia-rtx-pro-6000"],
    "A100 SXM4 40GB": ["nvidia-tesla-a100"], "V100 SXM2 16GB": ["nvidia-tesla-v100"],
    "H20 96GB": ["NVIDIA H20"],  # as its driver prints it; the larger one is "NVIDIA H20-3e"
    "Quadro RTX 6000": ["Quadro RTX 6000", "NVIDIA Quadro RTX 6000"], "Quadro RTX 5000": ["Quadro RTX 5000", "NVIDIA Quadro RTX 5000"],
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
     "fp16_bf16_dense_tflops": 37.9, "int8_dense_tops": 151.7, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16"},
    {"name": "RTX 3080 Laptop 8GB", "offered": False, "arch": "Ampere", "memory_gb_nominal": 8, "memory_type": "GDDR6", "bandwidth_gb_s": 448,
     "fp16_bf16_dense_tflops": 37.9, "int8_dense_tops": 151.7, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16"},
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
    {"name": "V100 SXM2 16GB", "arch": "Volta", "memory_gb_nominal": 16, "memory_type": "HBM2", "bandwidth_gb_s": 900, "fp16_bf16_dense_tflops": 125, "cuda_visible_gib": 15.78, "interconnect_gb_s_bidirectional": 300, "compute_capability": "7.0", "pcie": "PCIe 3.0 x16", "aliases": ["V100-SXM2-16GB", "V100 16GB"]},
    {"name": "V100 PCIe 16GB", "arch": "Volta", "memory_gb_nominal": 16, "memory_type": "HBM2", "bandwidth_gb_s": 900, "fp16_bf16_dense_tflops": 112, "cuda_visible_gib": 15.78, "compute_capability": "7.0", "pcie": "PCIe 3.0 x16", "aliases": ["V100-PCIE-16GB"]},
    {"name": "V100 PCIe 32GB", "arch": "Volta", "memory_gb_nominal": 32, "memory_type": "HBM2", "bandwidth_gb_s": 900, "fp16_bf16_dense_tflops": 112, "compute_capability": "7.0", "pcie": "PCIe 3.0 x16", "aliases": ["V100-PCIE-32GB"]},
    {"name": "V100S PCIe 32GB", "arch": "Volta", "memory_gb_nominal": 32, "memory_type": "HBM2", "bandwidth_gb_s": 1134, "fp16_bf16_dense_tflops": 130, "compute_capability": "7.0", "pcie": "PCIe 3.0 x16", "aliases": ["V100S-PCIE-32GB", "V100S"]},
    {"name": "P100 PCIe 16GB", "arch": "Pascal", "memory_gb_nominal": 16, "memory_type": "HBM2", "bandwidth_gb_s": 732, "fp16_bf16_dense_tflops": 18.7, "compute_capability": "6.0", "pcie": "PCIe 3.0 x16", "aliases": ["P100-PCIE-16GB", "P100", "P100-SXM2-16GB"]},
    {"name": "P40", "arch": "Pascal", "memory_gb_nominal": 24, "memory_type": "GDDR5", "bandwidth_gb_s": 346, "fp16_bf16_dense_tflops": 11.8, "compute_capability": "6.1", "pcie": "PCIe 3.0 x16", "aliases": ["P40 24GB"]},
    {"name": "TITAN RTX", "arch": "Turing", "memory_gb_nominal": 24, "memory_type": "GDDR6", "bandwidth_gb_s": 672, "fp16_bf16_dense_tflops": 130.5, "compute_capability": "7.5", "pcie": "PCIe 3.0 x16"},
    {"name": "Quadro RTX 5000", "arch": "Turing", "memory_gb_nominal": 16, "memory_type": "GDDR6", "bandwidth_gb_s": 448, "fp16_bf16_dense_tflops": 89.2, "compute_capability": "7.5", "pcie": "PCIe 3.0 x16"},
    {"name": "Quadro RTX 6000", "arch": "Turing", "memory_gb_nominal": 24, "memory_type": "GDDR6", "bandwidth_gb_s": 672, "fp16_bf16_dense_tflops": 130.5, "compute_capability": "7.5", "pcie": "PCIe 3.0 x16"},
    {"name": "Quadro RTX 8000", "arch": "Turing", "memory_gb_nominal": 48, "memory_type": "GDDR6", "bandwidth_gb_s": 672, "fp16_bf16_dense_tflops": 130.5, "compute_capability": "7.5", "pcie": "PCIe 3.0 x16"},
    {"name": "RTX 3050", "arch": "Ampere", "memory_gb_nominal": 8, "memory_type": "GDDR6", "bandwidth_gb_s": 224, "fp16_bf16_dense_tflops": 18.2, "compute_capability": "8.6", "pcie": "PCIe 4.0 x8", "aliases": ["RTX 3050 8GB"]},
    {"name": "RTX 3060 Laptop", "arch": "Ampere", "memory_gb_nominal": 6, "memory_type": "GDDR6", "bandwidth_gb_s": 336, "fp16_bf16_dense_tflops": 21.8, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16", "aliases": ["RTX 3060 Laptop GPU"]},
    {"name": "RTX 3070 Laptop", "arch": "Ampere", "memory_gb_nominal": 8, "memory_type": "GDDR6", "bandwidth_gb_s": 448, "fp16_bf16_dense_tflops": 33.2, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16", "aliases": ["RTX 3070 Laptop GPU"]},
    {"name": "RTX 3070 Ti", "arch": "Ampere", "memory_gb_nominal": 8, "memory_type": "GDDR6X", "bandwidth_gb_s": 608, "fp16_bf16_dense_tflops": 43.5, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16"},
    {"name": "RTX 3080 12GB", "arch": "Ampere", "memory_gb_nominal": 12, "memory_type": "GDDR6X", "bandwidth_gb_s": 912, "fp16_bf16_dense_tflops": 61.3, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16"},
    {"name": "RTX 4060 Ti 8GB", "arch": "Ada", "memory_gb_nominal": 8, "memory_type": "GDDR6", "bandwidth_gb_s": 288, "fp16_bf16_dense_tflops": 44.1, "fp8_dense_tflops": 88.2, "int8_dense_tops": 176, "compute_capability": "8.9", "pcie": "PCIe 4.0 x8"},
    {"name": "RTX 5060", "arch": "Blackwell", "memory_gb_nominal": 8, "memory_type": "GDDR7", "bandwidth_gb_s": 448, "fp16_bf16_dense_tflops": 38.4, "fp8_dense_tflops": 76.8, "fp4_dense_tflops": 307, "compute_capability": "12.0", "pcie": "PCIe 5.0 x8"},
    {"name": "RTX 5060 Ti 8GB", "arch": "Blackwell", "memory_gb_nominal": 8, "memory_type": "GDDR7", "bandwidth_gb_s": 448, "fp16_bf16_dense_tflops": 47.4, "fp8_dense_tflops": 94.8, "fp4_dense_tflops": 379, "compute_capability": "12.0", "pcie": "PCIe 5.0 x8"},
    {"name": "A2", "arch": "Ampere", "memory_gb_nominal": 16, "memory_type": "GDDR6", "bandwidth_gb_s": 200, "fp16_bf16_dense_tflops": 18, "int8_dense_tops": 36, "compute_capability": "8.6", "pcie": "PCIe 4.0 x8", "aliases": ["A2 16GB"]},
    {"name": "RTX A2000 12GB", "arch": "Ampere", "memory_gb_nominal": 12, "memory_type": "GDDR6", "bandwidth_gb_s": 288, "fp16_bf16_dense_tflops": 31.9, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16"},
    {"name": "RTX A4500", "arch": "Ampere", "memory_gb_nominal": 20, "memory_type": "GDDR6", "bandwidth_gb_s": 640, "fp16_bf16_dense_tflops": 94.6, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16"},
    {"name": "RTX A5500", "arch": "Ampere", "memory_gb_nominal": 24, "memory_type": "GDDR6", "bandwidth_gb_s": 768, "fp16_bf16_dense_tflops": 136.4, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16"},
    {"name": "RTX 2000 Ada", "arch": "Ada", "memory_gb_nominal": 16, "memory_type": "GDDR6", "bandwidth_gb_s": 224, "fp16_bf16_dense_tflops": 48, "fp8_dense_tflops": 96, "compute_capability": "8.9", "pcie": "PCIe 4.0 x8", "aliases": ["RTX 2000 Ada Generation"]},
    {"name": "RTX 4500 Ada", "arch": "Ada", "memory_gb_nominal": 24, "memory_type": "GDDR6", "bandwidth_gb_s": 432, "fp16_bf16_dense_tflops": 158.5, "fp8_dense_tflops": 317, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16", "aliases": ["RTX 4500 Ada Generation"]},
    {"name": "RTX PRO 4000 Blackwell", "arch": "Blackwell", "memory_gb_nominal": 24, "memory_type": "GDDR7", "bandwidth_gb_s": 672, "fp16_bf16_dense_tflops": 187, "fp8_dense_tflops": 375, "fp4_dense_tflops": 750, "compute_capability": "12.0", "pcie": "PCIe 5.0 x16", "aliases": ["RTX PRO 4000"]},
    {"name": "RTX PRO 4500 Blackwell", "arch": "Blackwell", "memory_gb_nominal": 32, "memory_type": "GDDR7", "bandwidth_gb_s": 896, "fp16_bf16_dense_tflops": 219, "fp8_dense_tflops": 439, "fp4_dense_tflops": 878, "compute_capability": "12.0", "pcie": "PCIe 5.0 x16", "aliases": ["RTX PRO 4500"]},
    {"name": "RTX PRO 5000 Blackwell", "arch": "Blackwell", "memory_gb_nominal": 48, "memory_type": "GDDR7", "bandwidth_gb_s": 1344, "fp16_bf16_dense_tflops": 295, "fp8_dense_tflops": 590, "fp4_dense_tflops": 1180, "compute_capability": "12.0", "pcie": "PCIe 5.0 x16", "aliases": ["RTX PRO 5000"]},
    {"name": "RTX PRO 6000 Blackwell Max-Q", "arch": "Blackwell", "memory_gb_nominal": 96, "memory_type": "GDDR7", "bandwidth_gb_s": 1792, "fp16_bf16_dense_tflops": 440, "fp8_dense_tflops": 880, "fp4_dense_tflops": 1755, "compute_capability": "12.0", "pcie": "PCIe 5.0 x16", "aliases": ["RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Max-Q"]},
    {"name": "H800 SXM", "arch": "Hopper", "memory_gb_nominal": 80, "memory_type": "HBM3", "bandwidth_gb_s": 3350, "fp16_bf16_dense_tflops": 989, "driver_total_mib": 81559, "fp8_dense_tflops": 1979, "int8_dense_tops": 1979, "interconnect_gb_s_bidirectional": 400, "compute_capability": "9.0", "pcie": "PCIe 5.0 x16", "aliases": ["H800", "H800 80GB"]},
    {"name": "H800 PCIe", "arch": "Hopper", "memory_gb_nominal": 80, "memory_type": "HBM2e", "bandwidth_gb_s": 2000, "fp16_bf16_dense_tflops": 756, "driver_total_mib": 81559, "fp8_dense_tflops": 1513, "int8_dense_tops": 1513, "compute_capability": "9.0", "pcie": "PCIe 5.0 x16"},
    {"name": "H20-3e", "arch": "Hopper", "memory_gb_nominal": 141, "memory_type": "HBM3e", "bandwidth_gb_s": 4800, "fp16_bf16_dense_tflops": 148, "fp8_dense_tflops": 296, "int8_dense_tops": 296, "interconnect_gb_s_bidirectional": 900, "compute_capability": "9.0", "pcie": "PCIe 5.0 x16", "aliases": ["H20 141GB"]},
    {"name": "RTX 4090 D", "offered": False, "arch": "Ada", "memory_gb_nominal": 24, "memory_type": "GDDR6X", "driver_total_mib": 24564, "bandwidth_gb_s": 1008, "fp16_bf16_dense_tflops": 147, "fp8_dense_tflops": 294, "int8_dense_tops": 588, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16", "aliases": ["RTX 4090D", "RTX 4090 D 24GB"]},
    {"name": "RTX 4090 48GB", "offered": False, "arch": "Ada", "memory_gb_nominal": 48, "memory_type": "GDDR6X", "driver_total_mib": 49140, "bandwidth_gb_s": 1008, "fp16_bf16_dense_tflops": 165.2, "fp8_dense_tflops": 330.3, "int8_dense_tops": 660.6, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16", "source_url": "modified boards of resellers; rates of the RTX 4090"},
    {"name": "RTX 4090 D 48GB", "offered": False, "arch": "Ada", "memory_gb_nominal": 48, "memory_type": "GDDR6X", "driver_total_mib": 49140, "bandwidth_gb_s": 1008, "fp16_bf16_dense_tflops": 147, "fp8_dense_tflops": 294, "int8_dense_tops": 588, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16", "source_url": "modified boards of resellers; rates of the RTX 4090 D", "aliases": ["RTX 4090D 48GB"]},
    {"name": "RTX 5090 D", "offered": False, "arch": "Blackwell", "memory_gb_nominal": 32, "memory_type": "GDDR7", "driver_total_mib": 32607, "bandwidth_gb_s": 1792, "fp16_bf16_dense_tflops": 209.5, "fp8_dense_tflops": 297, "fp4_dense_tflops": 1188, "compute_capability": "12.0", "pcie": "PCIe 5.0 x16", "aliases": ["RTX 5090D"]},
    {"name": "RTX 2060 12GB", "offered": False, "arch": "Turing", "memory_gb_nominal": 12, "memory_type": "GDDR6", "bandwidth_gb_s": 336, "fp16_bf16_dense_tflops": 28.7, "compute_capability": "7.5", "pcie": "PCIe 3.0 x16"},
    {"name": "RTX 3060 8GB", "offered": False, "arch": "Ampere", "memory_gb_nominal": 8, "memory_type": "GDDR6", "bandwidth_gb_s": 240, "fp16_bf16_dense_tflops": 25.5, "compute_capability": "8.6", "pcie": "PCIe 4.0 x16"},
    {"name": "RTX PRO 2000 Blackwell", "arch": "Blackwell", "memory_gb_nominal": 16, "memory_type": "GDDR7", "bandwidth_gb_s": 288, "fp16_bf16_dense_tflops": 68, "fp8_dense_tflops": 136, "fp4_dense_tflops": 272, "compute_capability": "12.0", "pcie": "PCIe 5.0 x8", "aliases": ["RTX PRO 2000"]},
    {"name": "RTX 4000 SFF Ada", "arch": "Ada", "memory_gb_nominal": 20, "memory_type": "GDDR6", "bandwidth_gb_s": 280, "fp16_bf16_dense_tflops": 76.7, "fp8_dense_tflops": 153.4, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16", "aliases": ["RTX 4000 SFF Ada Generation"]},
    {"name": "T4G", "offered": False, "arch": "Turing", "memory_gb_nominal": 16, "memory_type": "GDDR6", "driver_total_mib": 15360, "bandwidth_gb_s": 320, "fp16_bf16_dense_tflops": 65, "int8_dense_tops": 130, "compute_capability": "7.5", "pcie": "PCIe 3.0 x16"},
    {"name": "TITAN V", "offered": False, "arch": "Volta", "memory_gb_nominal": 12, "memory_type": "HBM2", "bandwidth_gb_s": 653, "fp16_bf16_dense_tflops": 110, "compute_capability": "7.0", "pcie": "PCIe 3.0 x16"},
    {"name": "GTX 1080 Ti", "offered": False, "arch": "Pascal", "memory_gb_nominal": 11, "memory_type": "GDDR5X", "driver_total_mib": 11264, "bandwidth_gb_s": 484, "fp16_bf16_dense_tflops": 11.3, "compute_capability": "6.1", "pcie": "PCIe 3.0 x16"},
    {"name": "Jetson AGX Thor 128GB", "offered": False, "arch": "Blackwell", "memory_gb_nominal": 128, "memory_type": "LPDDR5X", "driver_total_mib": 125772, "bandwidth_gb_s": 273, "fp16_bf16_dense_tflops": 125, "fp8_dense_tflops": 250, "fp4_dense_tflops": 500, "compute_capability": "11.0", "pcie": None, "source_url": "NVIDIA Jetson Thor data sheet (T5000)", "aliases": ["Jetson AGX Thor", "AGX Thor", "Jetson Thor", "Thor", "Jetson T5000"], "bare": ["Thor", "Jetson Thor"]},
    {"name": "Jetson Thor T4000 64GB", "offered": False, "arch": "Blackwell", "memory_gb_nominal": 64, "memory_type": "LPDDR5X", "bandwidth_gb_s": 273, "fp16_bf16_dense_tflops": 75, "fp8_dense_tflops": 150, "fp4_dense_tflops": 300, "compute_capability": "11.0", "pcie": None, "source_url": "NVIDIA Jetson Thor data sheet (T4000)", "aliases": ["Jetson T4000"]},
    {"name": "Jetson AGX Orin 64GB", "offered": False, "arch": "Ampere", "memory_gb_nominal": 64, "memory_type": "LPDDR5", "driver_total_mib": 62840, "bandwidth_gb_s": 204.8, "fp16_bf16_dense_tflops": 42.5, "int8_dense_tops": 85, "compute_capability": "8.7", "pcie": None, "source_url": "NVIDIA Jetson AGX Orin data sheet", "aliases": ["AGX Orin 64GB", "Orin 64GB"]},
    {"name": "Jetson AGX Orin 32GB", "offered": False, "arch": "Ampere", "memory_gb_nominal": 32, "memory_type": "LPDDR5", "bandwidth_gb_s": 204.8, "fp16_bf16_dense_tflops": 27, "int8_dense_tops": 54, "compute_capability": "8.7", "pcie": None, "source_url": "NVIDIA Jetson AGX Orin data sheet", "aliases": ["AGX Orin 32GB", "Orin 32GB"]},
    {"name": "Jetson Orin NX 16GB", "offered": False, "arch": "Ampere", "memory_gb_nominal": 16, "memory_type": "LPDDR5", "bandwidth_gb_s": 102.4, "fp16_bf16_dense_tflops": 12.5, "int8_dense_tops": 25, "compute_capability": "8.7", "pcie": None, "source_url": "NVIDIA Jetson Orin NX data sheet", "aliases": ["Orin NX 16GB", "Orin NX"]},
    {"name": "Jetson Orin Nano Super 8GB", "offered": False, "arch": "Ampere", "memory_gb_nominal": 8, "memory_type": "LPDDR5", "bandwidth_gb_s": 102, "fp16_bf16_dense_tflops": 17, "int8_dense_tops": 33, "compute_capability": "8.7", "source_url": "NVIDIA Jetson Orin Nano data sheet (67 sparse TOPS)", "aliases": ["Orin Nano Super", "Jetson Orin Nano Super"]},
    {"name": "Jetson Orin Nano 8GB", "offered": False, "arch": "Ampere", "memory_gb_nominal": 8, "memory_type": "LPDDR5", "bandwidth_gb_s": 68, "fp16_bf16_dense_tflops": 10, "int8_dense_tops": 20, "compute_capability": "8.7", "source_url": "NVIDIA Jetson Orin Nano data sheet (40 sparse TOPS)", "aliases": ["Orin Nano 8GB"]},
    {"name": "Jetson Orin Nano 4GB", "offered": False, "arch": "Ampere", "memory_gb_nominal": 4, "memory_type": "LPDDR5", "bandwidth_gb_s": 34, "fp16_bf16_dense_tflops": 5, "int8_dense_tops": 10, "compute_capability": "8.7", "source_url": "NVIDIA Jetson Orin Nano data sheet (20 sparse TOPS)", "aliases": ["Orin Nano 4GB"]},
    {"name": "GB300 (DGX Station)", "offered": False, "arch": "Blackwell Ultra", "memory_gb_nominal": 252, "memory_type": "HBM3e", "driver_total_mib": 256703, "bandwidth_gb_s": 7100, "fp16_bf16_dense_tflops": 2500, "fp8_dense_tflops": 5000, "fp4_dense_tflops": 15000, "compute_capability": "10.3", "source_url": "memory: NVIDIA/NemoClaw#9901; bandwidth: midudev/canirun.ai#20 (NVIDIA DGX Station datasheet); rates of GB300", "from_memory_fields": [], "aliases": ["GB300-WS", "GB300 WS", "DGX Station", "DGX Station GB300", "GB300 252GB"], "bare": ["DGX Station"]},
    {"name": "RTX PRO 5000 Blackwell 72GB", "arch": "Blackwell", "memory_gb_nominal": 72, "memory_type": "GDDR7", "bandwidth_gb_s": 1344, "fp16_bf16_dense_tflops": 295, "fp8_dense_tflops": 590, "fp4_dense_tflops": 1180, "compute_capability": "12.0", "pcie": "PCIe 5.0 x16", "aliases": ["RTX PRO 5000 72GB", "RTX PRO 5000 72GB Blackwell"]},
    {"name": "RTX PRO 4000 Blackwell SFF", "offered": False, "arch": "Blackwell", "memory_gb_nominal": 24, "memory_type": "GDDR7", "bandwidth_gb_s": 432, "fp16_bf16_dense_tflops": 96, "fp8_dense_tflops": 192, "fp4_dense_tflops": 385, "compute_capability": "12.0", "pcie": "PCIe 5.0 x8", "aliases": ["RTX PRO 4000 SFF", "RTX PRO 4000 Blackwell SFF Edition"]},
    {"name": "A800 40GB Active", "offered": False, "arch": "Ampere", "memory_gb_nominal": 40, "memory_type": "HBM2", "driver_total_mib": 40960, "bandwidth_gb_s": 1555, "fp16_bf16_dense_tflops": 312, "int8_dense_tops": 624, "compute_capability": "8.0", "pcie": "PCIe 4.0 x16", "aliases": ["A800 40GB"]},
    {"name": "Quadro GV100", "offered": False, "arch": "Volta", "memory_gb_nominal": 32, "memory_type": "HBM2", "bandwidth_gb_s": 868, "fp16_bf16_dense_tflops": 118, "compute_capability": "7.0", "pcie": "PCIe 3.0 x16", "aliases": ["GV100"]},
    {"name": "V100 FHHL 16GB", "offered": False, "arch": "Volta", "memory_gb_nominal": 16, "memory_type": "HBM2", "cuda_visible_gib": 15.78, "bandwidth_gb_s": 829, "fp16_bf16_dense_tflops": 105, "compute_capability": "7.0", "pcie": "PCIe 3.0 x16", "aliases": ["V100-FHHL-16GB"]},
    {"name": "L2", "offered": False, "arch": "Ada", "memory_gb_nominal": 24, "memory_type": "GDDR6", "bandwidth_gb_s": 300, "fp16_bf16_dense_tflops": 96.5, "fp8_dense_tflops": 193, "int8_dense_tops": 193, "compute_capability": "8.9", "pcie": "PCIe 4.0 x16", "aliases": ["L2 24GB"]},
    {"name": "MI250X (per GCD, 2 per board)", "vendor": "AMD", "arch": "CDNA2", "memory_gb_nominal": 64, "memory_type": "HBM2e", "bandwidth_gb_s": 1638, "fp16_bf16_dense_tflops": 191.5, "int8_dense_tops": 191.5, "compute_capability": "gfx90a", "pcie": "PCIe 4.0 x16", "interconnect_gb_s_bidirectional": 400, "aliases": ["MI250X"]},  # what an engine sees as a card
    {"name": "MI350X", "vendor": "AMD", "arch": "CDNA4", "memory_gb_nominal": 288, "memory_type": "HBM3E", "bandwidth_gb_s": 8000, "fp16_bf16_dense_tflops": 2300, "fp8_dense_tflops": 4600, "fp4_dense_tflops": 9200, "compute_capability": "gfx950", "pcie": "PCIe 5.0 x16", "interconnect_gb_s_bidirectional": 1075, "source_url": "AMD data sheet", "aliases": ["MI350X OAM"]},
    {"name": "MI100", "vendor": "AMD", "arch": "CDNA1", "memory_gb_nominal": 32, "memory_type": "HBM2", "bandwidth_gb_s": 1229, "fp16_bf16_dense_tflops": 184.6, "compute_capability": "gfx908", "pcie": "PCIe 4.0 x16", "source_url": "AMD data sheet"},
    {"name": "Radeon PRO W7900", "vendor": "AMD", "arch": "RDNA3", "memory_gb_nominal": 48, "memory_type": "GDDR6", "bandwidth_gb_s": 864, "fp16_bf16_dense_tflops": 122.6, "compute_capability": "gfx1100", "pcie": "PCIe 4.0 x16", "source_url": "AMD data sheet", "aliases": ["W7900"]},
    {"name": "RX 9070 XT", "vendor": "AMD", "arch": "RDNA4", "memory_gb_nominal": 16, "memory_type": "GDDR6", "bandwidth_gb_s": 645, "fp16_bf16_dense_tflops": 195, "compute_capability": "gfx1201", "pcie": "PCIe 5.0 x16", "source_url": "AMD data sheet"},
    {"name": "Radeon AI PRO R9700", "vendor": "AMD", "arch": "RDNA4", "memory_gb_nominal": 32, "memory_type": "GDDR6", "bandwidth_gb_s": 645, "fp16_bf16_dense_tflops": 191, "compute_capability": "gfx1201", "pcie": "PCIe 5.0 x16", "source_url": "AMD data sheet", "aliases": ["R9700", "AI PRO R9700"]},
    {"name": "Arc Pro B60", "vendor": "Intel", "arch": "Xe2", "memory_gb_nominal": 24, "memory_type": "GDDR6", "bandwidth_gb_s": 456, "fp16_bf16_dense_tflops": 98, "int8_dense_tops": 197, "compute_capability": None, "pcie": "PCIe 5.0 x8", "source_url": "Intel data sheet", "aliases": ["Arc Pro B60 24GB", "Arc Pro B60 Graphics"]},
    {"name": "Arc Pro B50", "vendor": "Intel", "arch": "Xe2", "memory_gb_nominal": 16, "memory_type": "GDDR6", "bandwidth_gb_s": 224, "fp16_bf16_dense_tflops": 85, "int8_dense_tops": 170, "compute_capability": None, "pcie": "PCIe 5.0 x8", "source_url": "Intel data sheet", "aliases": ["Arc Pro B50 Graphics"]},
    {"name": "Arc A770", "vendor": "Intel", "arch": "Xe-HPG", "memory_gb_nominal": 16, "memory_type": "GDDR6", "bandwidth_gb_s": 560, "fp16_bf16_dense_tflops": 138, "compute_capability": None, "pcie": "PCIe 4.0 x16", "source_url": "Intel data sheet", "aliases": ["Arc A770 16GB", "Arc A770 Graphics"]},
]  # fmt: skip


def entry(row: dict[str, Any]) -> dict[str, Any]:
    """One line of the catalog: the table's figures without empty fields, and the card's other names."""
    name = row["name"]
    row = {**row, "offered": False} if name in NOT_OFFERED else row
    row = {**row, "bridge": True} if name in BRIDGED else row
    if _GEFORCE.match(name) and "fp16_fp16acc_dense_tflops" not in row:
        row = {**row, "fp16_fp16acc_dense_tflops": round(2 * row["fp16_bf16_dense_tflops"], 1)}
    out = {key: row[key] for key in KEEP if row.get(key) not in (None, [], {})}
    if name in PRINTED:
        out["cuda_visible_gib"] = PRINTED[name]
        out["sources"] = {
            **out.get("sources", {}),
            "cuda_visible_gib": PRINTED_BY.get(name, _LOGS),
        }
    bare = [*BARE.get(name, []), *row.get("bare", [])]
    out["aliases"] = sorted({*ALIASES.get(name, []), *row.get("aliases", []), *bare})
    if bare:
        out["bare"] = bare
    if shared := [short for short, cards in SHARED.items() if name in cards]:
        out["shared"] = shared
    if name in WHOLE:
        out["whole"] = WHOLE[name]
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

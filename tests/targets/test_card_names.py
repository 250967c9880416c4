"""Cards by the names that drivers, makers and clouds give them."""

from __future__ import annotations

import pytest

from passes.errors import InputError
from targets.cards import find_cards
from targets.gpu import OtherMakerError, all_gpus, card_seen
from targets.other_makers import other_maker

GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "card", "count"),
    [
        ("V100-SXM2-16GB", "V100 SXM2 16GB", None), ("H20-3e", "H20-3e", None), ("NVIDIA H20", "H20 96GB", None),
        ("RTX PRO 6000 Server Edition", "RTX PRO 6000 Blackwell Server", None), ("H800", "H800 SXM", None),
        ("RTX PRO 5000", "RTX PRO 5000 Blackwell", None), ("RTX 4090 D", "RTX 4090 D", None), ("RTX 4090 48GB", "RTX 4090 48GB", None),
        ("A4500", "RTX A4500", None), ("RTX 8000", "Quadro RTX 8000", None), ("NVIDIA Thor", "Jetson AGX Thor 128GB", None),
        ("AMD Instinct MI350X", "MI350X", None), ("Intel(R) Arc(TM) Pro B60 Graphics", "Arc Pro B60", None),
        ("nvidia-tesla-a100", "A100 SXM4 40GB", None), ("nvidia-l4", "L4", None), ("nvidia-h100-mega-80gb", "H100 SXM", None),
        ("L4:1", "L4", 1), ("H100 x2", "H100 SXM", 2), ("3090 x 2", "RTX 3090", 2), ("2 x 4090", "RTX 4090", 2), ("4090x4", "RTX 4090", 4),
        ("A100 80G", "A100 SXM4 80GB", None), ("A100-80G:8", "A100 SXM4 80GB", 8), ("A10G", "A10G", None),
        ("A100:8", "A100 SXM4 40GB", 8), ("A100-80GB:8", "A100 SXM4 80GB", 8), ("8x H100", "H100 SXM", 8),
        ("g5.xlarge", "A10G", 1), ("p4d.24xlarge", "A100 SXM4 40GB", 8), ("Standard_NC24ads_A100_v4", "A100 PCIe 80GB", 1),
        ("NC24ads_A100_v4", "A100 PCIe 80GB", 1), ("a2-ultragpu-1g", "A100 SXM4 80GB", 1), ("a3-highgpu-8g", "H100 SXM", 8),
        ("BM.GPU.H100.8", "H100 SXM", 8), ("gpu_8x_h100_sxm5", "H100 SXM", 8), ("gpu_1x_a100", "A100 PCIe 40GB", 1),
        ("gd-8xh200ib-i128", "H200 SXM", 8), ("L4-2-24G", "L4", 2), ("H100-SXM-8-80G", "H100 SXM", 8), ("H100-1-80G", "H100 PCIe", 1),
        ("H100_NVLINK_80GB", "H100 SXM", None), ("NVIDIA L2", "L2", None), ("Orin Nano 8GB", "Jetson Orin Nano 8GB", None),
        ("RTX 3090 Ti+RTX 3090", "RTX 3090", 2), ("H100x8", "H100 SXM", 8), ("l40sx4", "L40S", 4), ("ml.g5.12xlarge", "A10G", 4),
        ("DGX H100", "H100 SXM", 8), ("DGX A100 640GB", "A100 SXM4 80GB", 8), ("HGX B300", "B300 SXM", None), ("a10g-largex2", "A10G", 2),
        ("DGX Station", "GB300 (DGX Station)", None), ("NVIDIA-GB300-WS", "GB300 (DGX Station)", None),
        ("GB200 NVL72", "GB200 (per GPU)", None),
        ("Standard_ND128isr_NDR_GB200_v6", "GB200 (per GPU)", 4), ("nvidia-rtx-pro-6000", "RTX PRO 6000 Blackwell Server", None),
        ("RTX 6000 Pro", "RTX PRO 6000 Blackwell Workstation", None),
        ("NVIDIA RTX PRO 5000 72GB Blackwell", "RTX PRO 5000 Blackwell 72GB", None),
        ("Tesla V100-FHHL-16GB", "V100 FHHL 16GB", None), ("NVIDIA-A10G-SHARED", "A10G", None),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED", "A100 SXM4 40GB MIG 1g.5gb", None),
    ],
)  # fmt: skip
def test_a_name_finds_its_card(name: str, card: str, count: int | None) -> None:
    found = find_cards(name)
    assert (found.gpu.name, found.count) == (card, count)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("A100:8", "A100:8 is read as A100 SXM4 40GB, as SkyPilot has it"),
        ("V100:4", "V100:4 is read as V100 SXM2 16GB, as SkyPilot has it"), ("V100 16GB", "V100 16GB is read as V100 SXM2 16GB"),
        ("A100 40GB", "A100 40GB is read as A100 SXM4 40GB"), ("A100-80GB:8", "A100-80GB is read as A100 SXM4 80GB"),
        ("A100 SXM4 40GB", None), ("RTX 6000 Pro", "RTX 6000 Pro is read as RTX PRO 6000 Blackwell Workstation"),
        ("RTX PRO 6000", "RTX PRO 6000 is read as RTX PRO 6000 Blackwell Workstation"), ("HGX H100", "HGX H100 is read as H100 SXM"),
        ("Tesla-T4-SHARED", "Tesla-T4-SHARED: pods share T4, and what the others take is not counted"),
    ],
)  # fmt: skip
def test_a_shorthand_says_what_it_is_read_as(name: str, note: str | None) -> None:
    assert find_cards(name).gpu.note == note


@pytest.mark.parametrize(
    "name", ["Orin", "Orin Nano", "Orin AGX", "DGX A100", "GH200", "H20", "RTX 4060 Ti", "4060ti", "RTX 5060 Ti"]
)
def test_a_name_that_several_cards_share_is_asked_back(name: str) -> None:
    with pytest.raises(InputError, match="names several cards"):
        find_cards(name)


@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("MI308X", "AMD"), ("AMD Ryzen AI Max+ 395", "AMD"), ("Strix Halo", "AMD"), ("Radeon 8060S Graphics", "AMD"), ("MI300", "AMD"),
        ("Intel(R) Arc(TM) B580 Graphics", "Intel"), ("Gaudi 3", "Intel"), ("HL-325L", "Intel"), ("TPU v5e", "Google"), ("v6e-8", "Google"),
        ("v5litepod-8", "Google"), ("ct6e-standard-8t", "Google"), ("inf2.xlarge", "AWS"), ("trn2.48xlarge", "AWS"),
        ("Apple M3 Ultra", "Apple"), ("M4 Max", "Apple"), ("Ascend 910B", "Huawei"),
    ],
)  # fmt: skip
def test_an_accelerator_of_a_maker_that_is_not_modelled_is_called_so(name: str, maker: str) -> None:
    with pytest.raises(OtherMakerError, match=f"{maker}'s accelerators are not modelled") as caught:
        find_cards(name)
    assert caught.value.exit_code == 6


def test_no_card_of_the_catalog_is_of_another_maker_than_it_says() -> None:
    named = {card.name: (card.vendor, other_maker(card.name)) for card in all_gpus()}
    assert all(maker in (None, vendor) for vendor, maker in named.values()), named


@pytest.mark.parametrize(
    "name",
    ["M60", "MX550", "T1000", "Tesla K80", "RTX 9090", "nonsense", "H100 160GB", "RTX 4090 96GB", "H100x0"],
)
def test_a_name_that_nobody_has_is_unknown(name: str) -> None:
    with pytest.raises(InputError, match="unknown GPU") as caught:
        find_cards(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("4O90", "RTX 4090"),
        ("RTX 4O8O", "RTX 4080"),
        ("A1OO", "A100 PCIe 40GB"),
        ("H1OO", "H100 SXM"),
        ("4099", "RTX 4090"),
    ],
)
def test_a_name_with_letters_for_digits_is_asked_back(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"unknown GPU '{name}'. Did you mean '{meant}'"):
        find_cards(name)


def test_a_card_that_its_driver_names_and_the_catalog_lacks_keeps_its_maker() -> None:
    assert card_seen("AMD Instinct MI308X", 192 * GIB).vendor == "AMD"


def test_a_shared_name_is_told_apart_by_its_memory() -> None:
    assert card_seen("NVIDIA GeForce RTX 4060 Ti", 8188 << 20).name == "RTX 4060 Ti 8GB"
    assert card_seen("NVIDIA GeForce RTX 4060 Ti", 16380 << 20).name == "RTX 4060 Ti 16GB"
    assert card_seen("NVIDIA GeForce RTX 4090", 49140 << 20).memory_bytes.value > 46 * GIB
    assert card_seen("NVIDIA Something New", 20 * GIB).memory_bytes.value > 19 * GIB


@pytest.mark.parametrize(
    ("name", "gib"),
    # NVIDIA's MIG guide: an A100 of 40 GB has slices of 4.75, 9.75 and 19.62 GiB.
    [("A100-SXM4-40GB MIG 1g.5gb", 4.75), ("A100-SXM4-40GB MIG 2g.10gb", 9.75), ("A100-SXM4-40GB MIG 3g.20gb", 19.62)],
)
def test_a_slice_has_its_share(name: str, gib: float) -> None:
    memory = find_cards(name).gpu.memory_bytes
    assert memory.low <= gib * GIB <= memory.high


@pytest.mark.parametrize(
    ("name", "card"),
    [("A100 MIG 2g.20gb", "A100 SXM4 80GB"), ("A100 MIG 3g.20gb", "A100 SXM4 40GB"), ("A100 1g.5gb", "A100 SXM4 40GB")],
)
def test_a_slice_tells_which_of_the_cards_of_a_name_it_is_of(name: str, card: str) -> None:
    assert find_cards(name).gpu.name.startswith(f"{card} MIG")


@pytest.mark.parametrize(
    ("name", "parts"), [("A30 MIG 1g.6gb", 4), ("RTX PRO 6000 MIG 1g.24gb", 4), ("RTX PRO 5000 MIG 1g.24gb", 2), ("H200 MIG 1g.18gb", 7)]
)  # fmt: skip
def test_a_slice_is_a_part_of_as_many_as_its_card_has(name: str, parts: int) -> None:
    part = find_cards(name).gpu
    whole = find_cards(name.partition(" MIG")[0]).gpu
    assert part.note is not None and part.note.startswith(f"1 of {parts} slices")
    assert part.bf16_flops is not None and whole.bf16_flops is not None
    assert part.bf16_flops * parts == pytest.approx(whole.bf16_flops)


@pytest.mark.parametrize(
    ("name", "of", "gib"),
    [("RTX 2080 Ti 22GB", "RTX 2080 Ti", 22), ("RTX 3080 20GB", "RTX 3080 10GB", 20), ("4080 super 32G", "RTX 4080 SUPER", 32)],
)  # fmt: skip
def test_a_board_of_resellers_has_twice_the_memory_and_the_rates_of_its_card(name: str, of: str, gib: int) -> None:
    board, card = find_cards(name).gpu, find_cards(of).gpu
    assert (gib - 1) * GIB < board.memory_bytes.value < gib * GIB
    assert (board.bandwidth_bytes_per_s, board.bf16_flops) == (card.bandwidth_bytes_per_s, card.bf16_flops)
    assert board.note is not None and "resellers" in board.note and not board.offered


def test_virtual_cards_have_the_size_in_their_name() -> None:
    assert 11 * GIB < find_cards("A10-12Q").gpu.memory_bytes.value < 12 * GIB
    assert find_cards("GRID A100D-80C").gpu.name.startswith("A100 SXM4 80GB")


def test_unlike_cards_count_as_the_least_of_them() -> None:
    found = find_cards("RTX 4090 + RTX 3060 12GB")
    assert found.count == 2
    assert found.gpu.name == "RTX 3060 12GB"
    assert found.gpu.capability == 86
    assert "unlike cards" in (found.gpu.note or "")
    with pytest.raises(InputError, match="several makers"):
        find_cards("RTX 4090, MI300X")


def test_a_name_longer_than_any_is_not_looked_into() -> None:
    """Its parts are looked for in a time that grows with the square of its length: of 100,000 letters, minutes."""
    with pytest.raises(InputError, match="unknown GPU"):
        find_cards("[" * 100_000)

"""Cards are found by the names people and NVML write, and offer what CUDA shows."""

from dataclasses import replace

import pytest

from passes.errors import InputError
from passes.host_memory import CardMemory
from targets.cards import find_cards
from targets.gpu import all_gpus, cards_named, find_gpu, inline_gpu, installed_gpu

GIB = 1 << 30


@pytest.mark.parametrize(
    ("written", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx-4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("H100", "H100 SXM"),
    ],
)
def test_a_card_is_found_by_catalog_name_nvml_name_or_alias(written: str, card: str) -> None:
    assert find_gpu(written).name == card


def test_a_bare_name_says_what_it_was_read_as() -> None:
    assert "SXM" in (find_gpu("H100").note or "")


def test_a_size_is_a_generic_card_with_the_memory_that_such_cards_show() -> None:
    card = find_gpu("24GB")
    assert 22 * GIB < card.memory_bytes.value < 23.8 * GIB
    assert card.memory_bytes.basis == "assumed"


def test_an_unknown_card_names_its_nearest() -> None:
    with pytest.raises(InputError) as caught:
        find_gpu("RTX 4091")
    assert "RTX 4090" in str(caught.value)


@pytest.mark.parametrize(("name", "low", "high"), [("RTX 4090", 23.4, 23.7), ("H100", 79.1, 79.25), ("T4", 14.5, 14.8)])
def test_memory_is_what_cuda_shows_not_the_nominal_size(name: str, low: float, high: float) -> None:
    assert low * GIB < find_gpu(name).memory_bytes.value < high * GIB


def test_every_card_of_the_catalog_finds_itself() -> None:
    for card in all_gpus():
        assert find_gpu(card.name).name == find_cards(card.name).gpu.name == card.name


def test_the_processor_is_a_target() -> None:
    assert find_gpu("cpu").is_cpu


@pytest.mark.parametrize(
    ("printed", "card"),
    [
        ("Tesla V100-SXM2-16GB", "V100 SXM2 16GB"),
        ("Tesla V100-PCIE-32GB", "V100 PCIe 32GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM4 40GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Blackwell Max-Q"),
        ("NVIDIA GH200 144G HBM3e", "GH200 144GB (HBM3e)"),
        ("NVIDIA GeForce RTX 3070 Ti", "RTX 3070 Ti"),
        ("nvidia-tesla-a100", "A100 SXM4 40GB"),  # Google Cloud's name of one size
        ("nvidia-tesla-v100", "V100 SXM2 16GB"),
        ("V100", "V100 SXM2 16GB"),  # never the larger one
        ("Quadro RTX 6000", "Quadro RTX 6000"),
        ("NVIDIA H100L-94C", "H100 NVL (94GB) (NVIDIA H100L-94C)"),
    ],
)
def test_names_as_drivers_and_clouds_print_them(printed: str, card: str) -> None:
    assert find_gpu(printed).name == card


def test_a_listed_card_may_have_a_memory_of_its_own() -> None:
    # Source: a 4090 shows 23.99 GiB under WSL.
    listed, here = find_gpu("RTX 4090"), inline_gpu({"name": "rtx 4090", "memory_gib": 23.99})
    assert here.memory_bytes.value == pytest.approx(23.99 * 2**30)
    assert replace(here, memory_bytes=listed.memory_bytes) == listed
    with pytest.raises(InputError, match="RTX 4999"):
        inline_gpu({"name": "RTX 4999", "memory_gib": 23.99})


@pytest.mark.parametrize(
    "name", ["A100", "RTX 6000", "RTX 3060", "NVIDIA GeForce RTX 3080", "RTX 4060 Ti", "Orin", "8xA100"]
)
def test_a_name_that_cards_of_unlike_memory_share_is_asked_back(name: str) -> None:
    with pytest.raises(InputError, match="names several cards"):
        find_cards(name)


@pytest.mark.parametrize(("total", "card"), [(8 << 30, "RTX 3060 8GB"), (12 << 30, "RTX 3060 12GB")])
def test_this_machines_card_is_told_by_its_memory(total: int, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVIDIA GeForce RTX 3060"
    monkeypatch.setattr("targets.gpu.installed_gpus", lambda: (name,))
    monkeypatch.setattr("targets.gpu.cards_memory", lambda: (CardMemory(name, total, total),))
    assert installed_gpu().name == card
    assert card in {each.name for each in cards_named(name)}

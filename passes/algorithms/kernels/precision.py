"""Says where fp32 products may go to a card's tensor cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def tensor_cores(tensor: torch.Tensor) -> Iterator[None]:
    """Have fp32 products of a card's tensors rounded to TF32 (10 bits of fraction) within: for what is only compared, as a search does.

    Nothing changes on the processor.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    if tensor.is_cuda:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""The tiny Llama of the walk's tests."""

from __future__ import annotations

from tests.walk.conftest import llama, llama_ir, tokens

__all__ = ["llama", "llama_ir", "tokens"]

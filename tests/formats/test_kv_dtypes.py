"""Types of the KV cache: one table, which the spec, the commands and the engines read."""

from __future__ import annotations

import pytest

from passes.formats.kv_dtypes import KV_DTYPES, NAMES, OWN, cache_bits, kv_dtype
from passes.kv_cache import KVCachePass
from planner.asked import chain_of
from planner.spec.parts.choices import PassesChoice


@pytest.mark.parametrize("dtype", KV_DTYPES, ids=lambda dtype: dtype.name)
def test_every_name_and_alias_is_understood_by_the_spec_and_by_commands(dtype):
    assert PassesChoice(kv_cache=(dtype.name,)).kv_cache == (dtype.name,)
    chain = () if dtype.name == OWN else (KVCachePass(dtype.name),)
    for name in (dtype.name, *dtype.aliases):
        assert kv_dtype(name) is dtype
        assert chain_of(None, name) == chain


def test_names_stand_for_one_type_each():
    names = [name for dtype in KV_DTYPES for name in (dtype.name, *dtype.aliases)]
    assert len(names) == len(set(names))


def test_bits_hold_the_scales():
    assert [cache_bits(name) for name in NAMES] == [
        16, 8, 8, 8.5, 6.5, 4.5, 16, 16, 8, 8, 4, 4.5, 4.5, 8, 4.5,
    ]  # fmt: skip
    assert cache_bits(OWN, own=32) == cache_bits("q5", own=32) == 32

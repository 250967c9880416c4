"""Images that bring a vLLM of their own: the one with the planned version, or the nearest, which is said."""

from __future__ import annotations

import re
from collections.abc import Sequence

from passes.record import dataclass
from targets.launch.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Bundle:
    """A tag of an image, and the minor version of vLLM that it brings."""

    vllm: tuple[int, int]
    tag: str

    @property
    def said(self) -> str:
        """The version of vLLM."""
        return ".".join(map(str, self.vllm))


def bundled(deployment: Deployment, bundles: Sequence[Bundle]) -> tuple[str, str]:
    """Return the tag of an image with the planned vLLM, else with the nearest one that is known, and a comment that says which."""
    planned = deployment.container.tag.removeprefix("v")
    major, minor = (int(part) for part in re.findall(r"\d+", planned)[:2])
    nearest = min(bundles, key=lambda each: (abs(each.vllm[0] - major), abs(each.vllm[1] - minor), -each.vllm[1]))
    if nearest.vllm == (major, minor):
        return nearest.tag, f"brings vLLM {nearest.said}, as planned"
    return nearest.tag, (
        f"brings vLLM {nearest.said}, and {planned} was planned: `optimize drift PLAN --engine-version {nearest.said}` says what changes"
    )

"""Accelerators that no engine is modelled for, by the names that their makers and clouds give them."""

from __future__ import annotations

import re

#: Whose they are, by names in lower case: families, drivers' names, machines of clouds.
_MAKERS = {
    "AMD": r"instinct|\bmi\d{2,3}[a-z]?\b|radeon|\brx ?\d{4}\b|strix|ryzen|\bgfx\d+|nd96isr_mi300x",
    "Intel": r"\barc\b|gaudi|\bhl-?\d{3}|\bmax ?1\d{3}\b|\bflex ?1[47]0\b|\bdl[12]q?\.",
    "Google": r"\btpu|\bv\d(e|p|litepod)?-\d+$|\bv[2-7][ep]$|\bct\d[elp]+-",
    "AWS": r"inferentia|trainium|\b(inf|trn)\d(\b|[a-z]*\.)",
    "Apple": r"apple|\bm\d(?= |$)( (pro|max|ultra))?$|macbook|mac (mini|studio|pro)",
    "Huawei": r"ascend|\b(910[abc]|310p)\d?\b",
    "Qualcomm": r"cloud ai ?100|\baic100\b|\bdl2q\b",
    "Moore Threads": r"\bmtt\b", "Cambricon": r"\bmlu ?\d{3}", "Hygon": r"\bdcu\b|\bk100", "Tenstorrent": r"tenstorrent|wormhole|blackhole",
    "Cerebras": r"cerebras|\bcs-?3\b", "Groq": r"\bgroq", "MetaX": r"metax|\bc500\b",
    "Kunlunxin": r"kunlun|\bp800\b", "Rebellions": r"rebellions|\batom\b",
}  # fmt: skip


def other_maker(name: str) -> str | None:
    """Return whose accelerator a name is, where it is of a maker whose engines are not modelled."""
    said = " ".join(re.sub(r"\((r|tm)\)", "", name.lower()).split())
    return next((maker for maker, names in _MAKERS.items() if re.search(names, said)), None)

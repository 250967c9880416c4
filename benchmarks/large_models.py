"""What four bits would be said to lose of large models, had the fit not seen Qwen3's tables.

    python -m benchmarks.large_models && python -m benchmarks.stored_tables && python -m benchmarks.results

The law is fitted once without that publication, and asked about models and formats of `benchmarks.measured_tables`.
"""

from __future__ import annotations

import os

from benchmarks import measured
from benchmarks.fit_quality import fit, seen_by
from benchmarks.measured_tables import LARGE_FORMATS, LARGE_MODELS
from benchmarks.quality_rows import loss_rows, traits_by_name
from planner.quality.law import ln_damage, rise_of
from planner.quality.traits import nominal

#: Qwen3's perplexities, of which the fit is asked to know nothing.
LEFT_OUT = "2505.02214"


def main() -> None:
    """Fit, ask, keep."""
    load_before = os.getloadavg()[0]
    rows = [row for row in loss_rows() if LEFT_OUT not in row.source]
    law, seen = fit(rows), seen_by(rows)
    found = {}
    for name in LARGE_MODELS:
        traits = traits_by_name(name)
        known = nominal(traits, tuple(map(float, seen.get(traits.family, ()))))
        found[name] = [round(rise_of(cause, ln_damage(law, cause, known)), 4) for cause in LARGE_FORMATS]
        print(f"{name:20} {found[name]}")
    measured.write("quality-large", "python -m benchmarks.large_models", found, load_before)


if __name__ == "__main__":
    main()

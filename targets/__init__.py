"""Where a model runs: cards, engines, workloads, launch files. Never executes a pass."""

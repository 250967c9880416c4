"""Makes, saves, reads and locks the plan document."""

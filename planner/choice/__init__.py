"""Which candidates there are, what becomes of each, which is chosen, and what would do instead."""

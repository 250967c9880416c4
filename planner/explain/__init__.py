"""Answers questions about a plan: words become a patch of its spec, the search runs on that, and both plans are compared."""

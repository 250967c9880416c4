"""One file an engine: legality by version and card, memory accounting, speed."""

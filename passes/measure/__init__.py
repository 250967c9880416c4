"""Says what was lost: a stored model against its source, a format in KL, a trial of a chain."""

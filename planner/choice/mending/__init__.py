"""What to change of a question of `check` so that it fits and keeps what is asked: kinds of changes, each tried."""

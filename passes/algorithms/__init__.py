"""Works on matrices: which integers to store, which zeros to choose, which option to take; independent of formats."""

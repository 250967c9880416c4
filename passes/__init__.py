"""What can be done to a model. Knows no GPU, no engine, no goal."""

"""What is written to start an engine."""

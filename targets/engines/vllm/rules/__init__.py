"""What vLLM refuses and how it decides, by version: one fact a line, beside its source."""

"""vLLM's own words: a command that starts its server, read as what it asks for."""

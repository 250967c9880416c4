"""Terms of vLLM's memory that the weights on disk do not tell."""

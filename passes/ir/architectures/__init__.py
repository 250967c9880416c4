"""How model families name their parts. Fails closed on what it does not know."""

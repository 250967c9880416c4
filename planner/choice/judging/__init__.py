"""What becomes of candidates: judged by the formula, simulated, decided among."""

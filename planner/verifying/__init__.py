"""Proof of a finished result: its files against their list, the running engine against the plan, under load and at full context."""

"""The parts of a spec: cards, engine, load, goals, passes."""

"""The parts of a plan's document: what was chosen, what was not, the spec, what it rests on."""

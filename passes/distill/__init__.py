"""Recovery of a pruned model by training on what the source model says."""

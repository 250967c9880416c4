"""What to take out of a matrix's inputs, and how the others make up for it."""

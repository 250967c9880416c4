"""What is learned by gradients, in the place of what is computed at once."""

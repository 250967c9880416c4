"""What runs on a card in a kernel of its own, where the same on the processor is a loop of tensor operations."""

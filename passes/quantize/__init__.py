"""Which integers to store: the quantization algorithms, independent of the format that stores them."""

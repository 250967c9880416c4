"""How a matrix is stored: one file a format, with its tensors, bytes, encode and decode."""

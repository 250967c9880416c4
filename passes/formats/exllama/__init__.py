"""ExLlama's formats, whose widths vary from matrix to matrix and within one."""

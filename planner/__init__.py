"""What should be done: spec, search, plan, reasons, and the command line."""

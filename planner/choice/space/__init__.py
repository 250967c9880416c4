"""Every candidate of a spec: its chains of passes, published checkpoints, widths that are solved for, spreads and settings."""

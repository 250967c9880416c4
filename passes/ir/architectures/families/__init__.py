"""Families beside the widespread ones, by what their layers are made of."""

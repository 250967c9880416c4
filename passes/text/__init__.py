"""Gives calibration and evaluation text as token ids, and says which part of it is for what."""

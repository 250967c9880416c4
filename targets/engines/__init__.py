"""Describes inference engines: legality by version and card, memory accounting, speed, launch files."""

"""The version of tightfit: what pyproject.toml names, and what plans lock."""

VERSION = "0.1.0"

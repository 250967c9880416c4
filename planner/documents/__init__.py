"""The JSON documents that commands write: which there are, and their schemas."""

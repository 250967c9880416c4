"""The first minute: what this machine can do, what is missing, and a spec to begin with."""

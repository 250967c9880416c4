"""Writes what runs an engine on a cluster: Kubernetes and what stands on it, and Ray."""

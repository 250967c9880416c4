"""Runs the steps of a job, each under the key of what it depends on, and keeps what each took."""

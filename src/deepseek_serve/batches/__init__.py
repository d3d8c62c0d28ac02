"""Batches: requests from a file, answered when the engine has time."""

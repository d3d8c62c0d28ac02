"""Measurements of the server as clients see it: `python -m benchmarks.serving`, or `make bench-serving`."""

"""Benchmarks a stranger can run: `make bench`. Results lie in benchmarks/results with the machine's description."""

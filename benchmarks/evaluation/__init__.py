"""Evaluation measured against lm-evaluation-harness: `make bench-eval`."""

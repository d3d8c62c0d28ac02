"""Tuning measured: the ladder from naive training to ours, and what the tuned models know."""

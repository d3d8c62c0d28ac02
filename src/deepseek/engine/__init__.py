"""Requests, pages, scheduling, and one step of a mixed batch."""

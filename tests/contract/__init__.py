"""Clients that others wrote, over every endpoint and error."""

"""Responses: conversations that the server keeps, and answers in the background."""

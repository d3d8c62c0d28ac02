"""The official Python SDK over every endpoint, one file each, and over every error.

``tests/contract/test_openai_2.py`` runs this folder once more with the major version before the installed one, so these
tests use what both have.
"""

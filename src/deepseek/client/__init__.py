"""Clients of a running server: the official OpenAI SDK, with this server's address, errors, batches and extras.

>>> from deepseek import Client
>>> client = Client()  # http://127.0.0.1:8000/v1, or $DEEPSEEK_BASE_URL; the key is $DEEPSEEK_API_KEY
>>> for text in client.stream_text("Name a river."):
...     print(text, end="", flush=True)
"""

from __future__ import annotations

from deepseek.errors import ConfigurationError

try:
    import openai  # noqa: F401
except ImportError as error:
    raise ConfigurationError(
        "deepseek.Client needs the package 'openai': pip install 'deepseek-platform[client]'."
    ) from error

from deepseek.client.batch import BatchResult
from deepseek.client.clients import AsyncClient, Client
from deepseek.client.server import Health, Tokens, UsageBucket

__all__ = ["AsyncClient", "BatchResult", "Client", "Health", "Tokens", "UsageBucket"]

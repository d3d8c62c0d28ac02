"""Anthropic's Messages API on the wire: the request, what it is as a chat, and the message that answers it."""

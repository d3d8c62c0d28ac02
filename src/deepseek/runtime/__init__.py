"""The process boundary: messages, the engine process, its client and its supervisor."""

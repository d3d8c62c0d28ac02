"""What the server tells about itself: logs, metrics, traces. None of it has a prompt or an answer."""

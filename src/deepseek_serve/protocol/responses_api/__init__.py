"""``/v1/responses``: the request, its items, and the objects and events that answer it."""

"""Which tokens count: dynamic sparse attention, guided by locality-sensitive hashing."""

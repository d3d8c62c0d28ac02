"""What goes over the wire: requests (validated by pydantic) and responses (msgspec structs, for speed)."""

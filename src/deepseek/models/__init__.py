"""One file per model family, held to transformers by parity tests."""

"""Training data: rows of a file -> conversations -> token ids on disk -> rows of packed examples."""

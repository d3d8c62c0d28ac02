"""A model's name to its files, and the files to config, weights and tokenizer."""

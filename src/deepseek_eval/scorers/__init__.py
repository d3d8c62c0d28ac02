"""What an answer is worth. A scorer is a small factory; what it needs of an item stands in its docstring."""

"""The tasks. Each module makes those of one kind; :mod:`deepseek_eval.registry` knows them all."""

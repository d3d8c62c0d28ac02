"""INT8 and INT4 weights: how they are made, chosen, written and judged."""

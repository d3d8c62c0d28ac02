"""Kernel signatures, the reference, and the backends behind them."""

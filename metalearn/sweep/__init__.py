"""Sweeps that survive: many runs of one configuration, chosen by a strategy, wherever they run."""

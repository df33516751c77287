"""Gradient-based meta-learning on one footing: DARTS, HyperNetworks and learned optimizers."""

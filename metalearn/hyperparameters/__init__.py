"""Learned learning rates and L2 penalties, and random search as their control; importing registers both."""

from metalearn.hyperparameters import config as config

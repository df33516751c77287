"""Recurrent networks that optimize without gradients (Chen et al. 2017), and their controls."""

from metalearn.learned_optimizers.black_box import config as config

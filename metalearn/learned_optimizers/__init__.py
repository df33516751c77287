"""Learned optimizers (Andrychowicz et al. 2016) beside tuned ones; importing the package registers both."""

from metalearn.learned_optimizers import config as config

"""Learned optimizers (Andrychowicz et al. 2016) beside tuned ones; importing the package registers both."""

from metalearn.learned_optimizers import black_box as black_box
from metalearn.learned_optimizers import config as config
from metalearn.learned_optimizers import rule_options as rule_options

"""Differentiable architecture search (Liu, Simonyan, Yang 2019): the space, its search, the derived network."""

from metalearn.darts import config as config

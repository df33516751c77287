"""Differentiable architecture search (Liu, Simonyan, Yang 2019): space, search, derived network."""

from metalearn.darts import config as config

"""Estimators of d outer / d meta; importing the package registers their names."""

from metalearn.hypergradient import config as config

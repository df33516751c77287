"""Hypergradient estimators held against the exact hypergradient: how near, how dear."""

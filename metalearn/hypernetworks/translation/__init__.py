"""Translation by recurrent encoder and decoder with attention (Wu et al. 2016)."""

from metalearn.hypernetworks.translation import config as config

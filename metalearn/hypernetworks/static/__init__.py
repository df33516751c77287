"""Networks whose weights are made once a step from learned embeddings (Ha, Dai and Le 2017, section 3.1)."""

from metalearn.hypernetworks.static import config as config

"""Networks whose weights are made by other networks (Ha, Dai and Le 2017), and their controls."""

from metalearn.hypernetworks import config as config
from metalearn.hypernetworks import static as static
from metalearn.hypernetworks import translation as translation

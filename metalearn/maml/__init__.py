"""Learning an initialisation to adapt from: MAML and its family; importing the package registers it."""

from metalearn.maml import config as config

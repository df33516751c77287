"""`metalearn replicate`: a recipe's stages, controls and seeds as one resumable command, then its report."""

from metalearn.replicate.command import replicate as replicate
from metalearn.replicate.command import tell as tell
from metalearn.replicate.plan import load as load

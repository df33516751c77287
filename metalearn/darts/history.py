"""What a search looked like at each measurement."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalearn.darts.draw import save
from metalearn.darts.draw_alpha import strip
from metalearn.darts.space import SearchSpace
from metalearn.tree import Tree, tree_map


class History:
    """Measurements in order, all on the host; `values` hold metrics by name."""

    def __init__(self) -> None:
        self.steps: list[int] = []  # taken before the measurement
        self.values: list[dict[str, float]] = []
        self.alpha: list[Tree] = []
        self.strengths: list[Tree] = []  # by kind of cell, [edge operation]

    def add(self, steps: int, values: dict[str, float], alpha: Tree, strengths: Tree) -> None:
        """One more."""
        self.steps.append(steps)
        self.values.append(values)
        self.alpha.append(tree_map(lambda leaf: leaf.detach().cpu().clone(), alpha))
        self.strengths.append(tree_map(lambda leaf: leaf.detach().cpu().clone(), strengths))

    def state_dict(self) -> dict[str, Any]:
        """Everything; tensors are never changed in place."""
        return {name: list(rows) for name, rows in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for name in vars(self):
            setattr(self, name, list(state[name]))

    def write(self, folder: Path, space: SearchSpace) -> None:
        """`alpha_history.json`: steps, operations by kind of cell, the strengths of each kind
        [measurement edge operation], genotypes, and the measured values by name; and the genotypes' picture,
        `genotype_over_time.svg`. Nothing if there are no measurements.
        """
        if not self.steps:
            return
        kinds, genotypes = list(self.strengths[0]), [space.discretise(tree) for tree in self.strengths]
        names = list(dict.fromkeys(name for row in self.values for name in row))
        document = {
            "steps": self.steps,
            "operations": {kind: list(choice.operations) for kind, choice in space.choices.items()},
            "strengths": {kind: [tree[kind].tolist() for tree in self.strengths] for kind in kinds},
            "genotypes": [json.loads(genotype.to_json()) for genotype in genotypes],
            "values": {name: [row.get(name) for row in self.values] for name in names},
        }
        (folder / "alpha_history.json").write_text(json.dumps(document), encoding="utf-8")
        masks = [space.encode(genotype) for genotype in genotypes]
        save(strip(self.steps, masks, space.choices), folder / "genotype_over_time.svg")

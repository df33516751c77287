"""What a user takes away from a search."""

import json
from pathlib import Path

from metalearn.darts.draw import write_svg
from metalearn.darts.genotype import AnyGenotype, Genotype
from metalearn.darts.operations import CANDIDATES
from metalearn.tree import Tree


def write_result(folder: Path, genotype: AnyGenotype, alpha: Tree) -> None:
    """`genotype.json`, `alpha.json` and a picture of each cell."""
    (folder / "genotype.json").write_text(genotype.to_json(), encoding="utf-8")
    rows = {kind: leaf.tolist() for kind, leaf in alpha.items()}
    (folder / "alpha.json").write_text(json.dumps({"operations": CANDIDATES, **rows}), encoding="utf-8")
    if isinstance(genotype, Genotype):
        write_svg(genotype.normal, "normal cell", folder / "cell_normal.svg")
        write_svg(genotype.reduce, "reduction cell", folder / "cell_reduce.svg")

"""What a user takes away from a search."""

import json
from pathlib import Path

from metalearn.darts.draw import recurrent_sketch, save, sketch, write_svg
from metalearn.darts.draw_alpha import heat_maps
from metalearn.darts.genotype import AnyGenotype, Genotype
from metalearn.darts.recurrent.genotype import RecurrentGenotype
from metalearn.darts.space import SearchSpace
from metalearn.tree import Tree


def write_result(
    folder: Path, space: SearchSpace, alpha: Tree, strengths: Tree, genotype: AnyGenotype
) -> None:
    """`genotype.json`, `alpha.json`, the genotype's pictures, and `alpha.svg`, a map of the strengths."""
    rows = {kind: leaf.tolist() for kind, leaf in alpha.items()}
    columns = {kind: list(choice.operations) for kind, choice in space.choices.items()}
    (folder / "alpha.json").write_text(json.dumps({"operations": columns, **rows}), encoding="utf-8")
    save(heat_maps(strengths, space.encode(genotype), space.choices), folder / "alpha.svg")
    write_genotype(folder, genotype)


def write_genotype(folder: Path, genotype: AnyGenotype) -> None:
    """`genotype.json`, and `genotype.svg` of all its cells."""
    (folder / "genotype.json").write_text(genotype.to_json(), encoding="utf-8")
    if isinstance(genotype, Genotype):
        cells = {"normal cell": sketch(genotype.normal), "reduction cell": sketch(genotype.reduce)}
        write_svg(cells, folder / "genotype.svg")
    if isinstance(genotype, RecurrentGenotype):
        write_svg({"recurrent cell": recurrent_sketch(genotype)}, folder / "genotype.svg")

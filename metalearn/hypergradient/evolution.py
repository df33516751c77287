"""The hypergradient from values alone, by opposite perturbations of the meta-parameters."""

from collections.abc import Iterator

import torch

from metalearn.hypergradient import side_by_side
from metalearn.hypergradient.base import Estimate, HyperGradient, Segment, check_segment
from metalearn.hypergradient.config import EvolutionOptions
from metalearn.hypergradient.particles import Contrast, mean_gradient, perturbation, play
from metalearn.hypergradient.side_by_side import lanes_of
from metalearn.problem import Inner, Problem
from metalearn.tree import Tree, add, detach


class Evolution(HyperGradient):
    """Antithetic evolution strategies over whole segments (the ES of Vicol et al. 2021, section 2).

    With L the loss of a segment from the carry, N pairs and eps_i ~ N(0, deviation^2 I),

        grad = sum_i eps_i (L(meta + eps_i) - L(meta - eps_i)) / (2 N deviation^2).

    Its mean is the exact gradient of the Gaussian-smoothed loss E L(meta + eps), which differs from L's by
    deviation^2 / 2 times the gradient of L's Laplacian, and more: none for quadratics. Its variance is about
    (||g||^2 + g_j^2) / N in entry j of P, so the relative error about sqrt((P + 1) / N): it suits few
    meta-parameters. Even terms cancel within a pair. Rounding adds errors of about |L| x machine epsilon /
    deviation, so deviations must not be tiny. Both runs of a pair see the same batches and noise.

    The inner run is not differentiated, so losses may jump; `problem.second_derivatives` has no say, as
    values hold every effect. The carry goes on by value under the unperturbed meta-parameters: a run
    longer than a segment is truncated, with its bias (`Pes` has none). Cost: 2 N + 1 plain inner runs, the
    one for carry and loss; the memory of one step's gradient. Where `SideBySide` problems have them all in
    one pass, and perhaps a perturbation for each part, the memory is that of all.
    """

    differentiates_twice = False

    def __init__(self, options: EvolutionOptions) -> None:
        self.pairs, self.deviation = options.pairs, options.deviation

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""
        return problem.init(meta, rng).detach()

    def estimate(
        self, problem: Problem, meta: Tree, carry: Inner, segment: Segment, rng: torch.Generator
    ) -> Estimate:
        """The hypergradient over the segment; loss and carry are those of the unperturbed run."""
        check_segment(segment)
        meta = detach(meta)
        if lanes_of(problem):
            return self._side_by_side(problem, meta, carry, segment, rng)
        loss, end = play(problem, meta, carry, segment)
        contrasts = self._contrasts(problem, meta, carry, segment, rng)
        grad, metrics = mean_gradient((each.gradient(self.deviation) for each in contrasts), meta)
        return Estimate(grad, loss, end, metrics)

    def _side_by_side(
        self, problem: Problem, meta: Tree, carry: Inner, segment: Segment, rng: torch.Generator
    ) -> Estimate:
        """All runs in one pass, the unperturbed one last."""
        noise = side_by_side.perturbations(meta, self.pairs, lanes_of(problem), self.deviation, rng)
        metas = {
            key: torch.cat([leaf, meta[key].expand_as(leaf[:1])])
            for key, leaf in side_by_side.opposite(meta, noise).items()
        }
        start = side_by_side.repeated(carry, 2 * self.pairs + 1)
        totals, ends = side_by_side.play(problem, metas, start, segment)
        grads = side_by_side.gradients(noise, totals[:-1], self.deviation)
        grad, metrics = mean_gradient(grads, meta)
        end = Inner(*({key: leaf[-1].clone() for key, leaf in tree.items()} for tree in ends))
        return Estimate(grad, totals[-1].sum(), end, metrics)

    def _contrasts(
        self, problem: Problem, meta: Tree, carry: Inner, segment: Segment, rng: torch.Generator
    ) -> Iterator[Contrast]:
        """One pair of runs at a time, so that one perturbation is kept."""
        for _ in range(self.pairs):
            noise = perturbation(meta, self.deviation, rng)
            positive, _ = play(problem, add(meta, noise), carry, segment)
            negative, _ = play(problem, add(meta, noise, -1.0), carry, segment)
            yield Contrast(noise, positive, negative)

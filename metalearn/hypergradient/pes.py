"""The hypergradient of runs longer than a segment, without truncation bias."""

import torch

from metalearn.hypergradient.base import Estimate, HyperGradient, Segment
from metalearn.hypergradient.config import PesOptions
from metalearn.hypergradient.particles import (
    Contrast,
    Pair,
    Particles,
    Swarm,
    mean_gradient,
    perturbation,
    play,
)
from metalearn.hypergradient.side_by_side import gathered, gradients, lanes_of, opposite, perturbations
from metalearn.hypergradient.side_by_side import play as play_all
from metalearn.problem import Inner, Problem
from metalearn.tree import Tree, add, detach, zeros_like


class Pes(HyperGradient):
    """Persistent evolution strategies (Vicol et al. 2021, algorithm 2, antithetic).

    Each of N pairs is two inner runs that live on from segment to segment. In each, a pair draws eps_i,
    adds it to its xi_i, and goes on under meta + eps_i and meta - eps_i to the losses L+ and L-:

        grad = sum_i xi_i (L+ - L-) / (2 N deviation^2).

    xi_i holds what earlier segments did to the run, so the sum of the estimates over a run at fixed meta
    has the gradient of the whole run's smoothed loss as its mean: no truncation bias, where reverse mode
    from a cut carry and `Evolution` have one. Smoothing is over independent perturbations of each segment's
    own copy of meta: without effect where losses are quadratic in these, else a bias of order deviation^2.
    While meta moves within a run, older parts of xi belong to older meta-parameters: a bias that falls with
    the meta learning rate. In the t-th segment of a run xi has the variance t deviation^2, and the
    estimate's own grows with it; it falls as 1 / N, and depends on the number of meta-parameters and on
    rounding as that of `Evolution`. The start of a run counts as a constant.

    Cost: 2 N plain inner runs a segment, one after the other, so that any problem will do, or in one pass of
    a problem that is `SideBySide`; 2 N inner states and N trees like meta are kept. Both runs of a pair see
    the same batches and noise. Where a problem is a sum of parts with a perturbation each, every part's
    loss meets its own xi only: the parts' noise averages out.
    """

    differentiates_twice = False

    def __init__(self, options: PesOptions) -> None:
        self.pairs, self.deviation = options.pairs, options.deviation

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Particles | Swarm:
        """All particles at one fresh inner run, none perturbed yet."""
        inner, lanes = problem.init(meta, rng), lanes_of(problem)
        return gathered(inner, meta, self.pairs, lanes) if lanes else self._gather(inner, meta)

    def estimate(
        self,
        problem: Problem,
        meta: Tree,
        carry: Particles | Swarm | Inner,
        segment: Segment,
        rng: torch.Generator,
    ) -> Estimate:
        """This segment's share of the run's hypergradient; the loss is the mean over particles.

        A segment without outer batches moves the particles and its gradient is zero. An `Inner` as carry is
        a run that starts there.
        """
        meta = detach(meta)
        if not isinstance(carry, Particles) and lanes_of(problem):
            return self._side_by_side(problem, meta, carry, segment, rng)
        assert not isinstance(carry, Swarm)
        particles = self._gather(carry, meta) if isinstance(carry, Inner) else carry
        contrasts, moved = [], []
        for pair in particles.pairs:
            noise = perturbation(meta, self.deviation, rng)
            positive, ahead = play(problem, add(meta, noise), pair.positive, segment)
            negative, behind = play(problem, add(meta, noise, -1.0), pair.negative, segment)
            moved.append(Pair(ahead, behind, add(pair.perturbation, noise)))
            contrasts.append(Contrast(moved[-1].perturbation, positive, negative))
        grad, metrics = mean_gradient((each.gradient(self.deviation) for each in contrasts), meta)
        losses = torch.stack([(contrast.positive + contrast.negative) / 2 for contrast in contrasts])
        return Estimate(grad, losses.mean(), Particles(tuple(moved)), metrics)

    def _side_by_side(
        self, problem: Problem, meta: Tree, carry: Swarm | Inner, segment: Segment, rng: torch.Generator
    ) -> Estimate:
        lanes = lanes_of(problem)
        swarm = gathered(carry, meta, self.pairs, lanes) if isinstance(carry, Inner) else carry
        noise = perturbations(meta, self.pairs, lanes, self.deviation, rng)
        totals, inner = play_all(problem, opposite(meta, noise), swarm.inner, segment)
        moved = Swarm(inner, add(swarm.perturbation, noise))
        grad, metrics = mean_gradient(gradients(moved.perturbation, totals, self.deviation), meta)
        return Estimate(grad, totals.sum(1).mean(), moved, metrics)

    def _gather(self, inner: Inner, meta: Tree) -> Particles:
        start = inner.detach()
        return Particles((Pair(start, start, zeros_like(meta)),) * self.pairs)

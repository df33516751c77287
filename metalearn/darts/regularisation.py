"""What else holds a supernet's weights back, and how that moves during a search."""

from metalearn.darts.config import DartsOptions
from metalearn.registry import UserError


class Regularisation:
    """Drop path and weight decay by progress, 0 to 1; `raised` counts increases of adaptive weight decay."""

    def __init__(self, options: DartsOptions) -> None:
        self.options, self.raised = options.regularisation, 0
        self.start = options.weight_decay
        if self.adaptive and not 0 < self.start <= self.options.largest_weight_decay:
            raise UserError(
                f"method.weight_decay: got {self.start}; adaptive weight decay starts above 0 and at most at "
                f"method.regularisation.largest_weight_decay={self.options.largest_weight_decay}"
            )
        if self.adaptive and self.options.factor == 1:
            raise UserError(
                "method.regularisation.factor: got 1, by which adaptive weight decay never grows; raise it"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the monitor raises the weight decay."""
        return self.options.weight_decay == "adaptive"

    def drop_path(self, progress: float) -> float:
        """Linear from 0."""
        return self.options.drop_path * progress

    def weight_decay(self, progress: float) -> float:
        """Of the real step; the unrolled one has the same, if it has any."""
        if self.options.weight_decay == "linear":
            return self.start + (self.options.final_weight_decay - self.start) * progress
        if self.adaptive:
            return min(self.start * self.options.factor**self.raised, self.options.largest_weight_decay)
        return self.start

    def can_rise(self) -> bool:
        """Whether adaptive weight decay is below its largest value."""
        return self.adaptive and self.weight_decay(0) < self.options.largest_weight_decay

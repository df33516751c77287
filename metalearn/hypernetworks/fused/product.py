"""Products of one weight with the small batches of many time steps."""

import torch
from jaxtyping import Float
from torch import Tensor

LARGE = 2**20  # numbers in a weight that a core's own cache does not hold
OPERATIONS = "_reorder_linear_weight", "_linear_pointwise"  # torch's own, but not among its promises
MANY = 8  # products that repay laying a weight out


class Product:
    """x -> x @ weight for `times` batches of `rows` rows.

    On the CPU a large weight is laid out anew once, by oneDNN; BLAS would do so at each product, which for
    few rows takes a third of its time.
    """

    def __init__(self, weight: Float[Tensor, "inputs outputs"], rows: int, times: int) -> None:
        self.weight, self.packed = weight, None
        if times >= MANY and _packable(weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.t(), rows)

    def __call__(self, x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        if self.packed is None:
            return x @ self.weight
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")

    def into(self, x: Float[Tensor, "rows inputs"], out: Float[Tensor, "rows outputs"]) -> None:
        if self.packed is None:
            torch.mm(x, self.weight, out=out)
        else:
            out.copy_(self(x))


def _packable(weight: Tensor) -> bool:
    usable = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
    known = usable and all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS)
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return known and on_cpu and weight.numel() >= LARGE

"""What the engine refuses to differentiate, and what it says then.

Every estimator that needs second derivatives of the inner loss runs under `second_order(its name)`, and looks
at its first inner loss with `check_twice_differentiable`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node, get_gradient_edge

from metalearn.registry import UserError
from metalearn.tree import Tree

WITHOUT = (
    "choose hypergradient=finite_difference (one inner step), first_order or evolution, which need no second "
    "derivative"
)
CAUSES = (  # what torch says, what it is called, which switch helps
    (
        r"derivative for '?(?:aten::)?(_?scaled_dot_product\w*)",
        "fused attention has no second derivative",
        "compute it under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
    ),
    (
        r"derivative for '?(?:aten::)?(_cudnn_rnn\w*)",
        "cuDNN's recurrent layers have no second derivative",
        "call the network under torch.backends.cudnn.flags(enabled=False), or use a cell written out",
    ),
    (
        r"derivative for '?(?:aten::)?(\w+)'? is not implemented",
        "torch has no second derivative of this operation",
        "write the operation out in elementary ones",
    ),
    (
        r"(aot_autograd) does not currently support double backward",
        "a compiled module has no second derivative",
        "set machine.compile=false",
    ),
    (
        r"(\w+)(?:\.backward)? does not support double[ -]backward",
        "this operation has no second derivative",
        "write the operation out in elementary ones",
    ),
)
_ONCE = once_differentiable(lambda *_: None).__code__  # type: ignore[attr-defined]


@contextmanager
def second_order(name: str) -> Iterator[None]:
    """A block, or by decoration a function, of the estimator `name` that differentiates twice.

    Turns torch's errors about a missing second derivative into a UserError with the operation and the switch
    that helps; every other error passes.
    """
    try:
        yield
    except RuntimeError as error:
        explained = _explain(str(error))
        if explained is None:
            raise
        raise UserError(f"{name}: {explained}; or {WITHOUT}") from error


def _explain(message: str) -> str | None:
    """What stands in the way and what helps, for torch's message; None if it is about something else."""
    for pattern, cause, help_ in CAUSES:
        found = re.search(pattern, message)
        if found:
            return f"{cause} ({found[1]}); {help_}"
    return None


def check_twice_differentiable(loss: Tensor, params: Tree) -> None:
    """Raises UserError if `loss` reaches `params` through a Function marked `once_differentiable`.

    `params` are the tensors by which the loss is differentiated first; behind such a Function of others
    alone, say of meta-parameters, one derivative is enough. `torch.autograd.grad` drops the second-order term
    of such a Function in silence (torch 2.13): no node that would raise its error is executed. One walk over
    the graph of `loss`.
    """
    once = [node for node in _ancestors(loss.grad_fn) if _once_differentiable(node)]
    if not once:
        return
    wanted = {get_gradient_edge(leaf).node for leaf in params.values() if leaf.requires_grad}
    for node in once:
        if not wanted.isdisjoint(_ancestors(node)):
            name = _function(node).__qualname__
            raise UserError(
                f"the inner loss uses {name}, whose backward is marked once_differentiable: its second "
                "derivative would be left out in silence; write its backward in differentiable operations "
                f"and drop the mark, or {WITHOUT}"
            )


def _ancestors(root: Node | None) -> set[Node]:
    """The nodes of the graph behind `root`, it among them."""
    found: set[Node] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(function for function, _ in node.next_functions)
    return found


def _function(node: Node) -> Any:
    """The `torch.autograd.Function` that made a node; None for torch's own operations."""
    return getattr(node, "_forward_cls", None)


def _once_differentiable(node: Node) -> bool:
    backwards = [getattr(_function(node), way, None) for way in ("backward", "vjp")]
    return any(getattr(backward, "__code__", None) is _ONCE for backward in backwards)


def check_module(module: nn.Module) -> nn.Module:
    """`module`, if no submodule of it is registered under two names.

    `torch.func.functional_call` leaves such a module with plain tensors in place of its parameters
    (pytorch#164759), and gradients through it are silently wrong from then on. Raises UserError.
    """
    first_names: dict[int, str] = {}
    for name, submodule in module.named_modules(remove_duplicate=False):
        other = first_names.setdefault(id(submodule), name)
        if other != name:
            raise UserError(
                f"network {type(module).__name__}: one {type(submodule).__name__} is registered twice, as "
                f"{other!r} and {name!r}; register each submodule once (share its Parameter instead)"
            )
    return module

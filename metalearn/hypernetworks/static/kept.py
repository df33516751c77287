"""Generated weights that stay until what made them changes."""

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from metalearn.tree import Tree


class Kept:
    """Weights by condition, valid while the parameters that made them are the same.

    Versions and addresses tell of changes in place, of `load_state_dict` and of moves; the numbers at those
    addresses are held, lest others come to lie there. Torch's fused optimizers write without counting a
    version, so any optimizer's step ends all that is kept.
    """

    def __init__(self) -> None:
        self._entries: dict[int | None, tuple[list[Any], list[Tensor], Tree]] = {}

    def take(self, condition: int | None, parameters: Iterable[Tensor], make: Callable[[], Tree]) -> Tree:
        """The weights that are kept for a condition; made anew if none are, or `parameters` moved."""
        held = [parameter.detach() for parameter in parameters]
        moment = [(p._version, p.data_ptr(), p.dtype, p.device) for p in held]
        if condition not in self._entries or self._entries[condition][0] != moment:
            _listen()
            _keeping.add(self)
            self._entries[condition] = (moment, held, make())
        return self._entries[condition][2]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Copies begin empty: nobody clears them yet."""
        return {"_entries": {}}


_keeping: weakref.WeakSet[Kept] = weakref.WeakSet()  # of a process: torch's hook is one, too


@functools.cache
def _listen() -> None:
    """Clear all there are at every optimizer's step.

    One hook, which stays: a hook that goes when what it serves goes may do so while torch calls them.
    """
    register_optimizer_step_post_hook(_clear)


def _clear(*_: object) -> None:
    for kept in list(_keeping):
        kept.clear()

"""Generated weights that stay until what made them changes."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from metalearn.tree import Tree


class Kept:
    """Weights by condition, valid while the parameters that made them are the same.

    Versions and addresses tell of changes in place, of `load_state_dict` and of moves. Torch's fused
    optimizers write without counting a version, so any optimizer's step ends all that is kept.
    """

    def __init__(self) -> None:
        self._entries: dict[int | None, tuple[list[Any], Tree]] = {}
        self._forget: Callable[[], object] | None = None

    def take(self, condition: int | None, parameters: Iterable[Tensor], make: Callable[[], Tree]) -> Tree:
        """The weights that are kept for a condition; made anew if none are, or `parameters` moved."""
        moment = [(p._version, p.data_ptr(), p.dtype, p.device) for p in parameters]
        if condition not in self._entries or self._entries[condition][0] != moment:
            self._listen()
            self._entries[condition] = (moment, make())
        return self._entries[condition][1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        if self._forget is not None:
            self._forget()
            self._forget = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies begin empty: nobody listens to optimizers for them yet."""
        return {"_entries": {}, "_forget": None}

    def _listen(self) -> None:
        """Clear at the next step of any optimizer; ends by itself with this object."""
        if self._forget is not None:
            return
        here = weakref.ref(self)

        def clear(*_: object) -> None:
            kept = here()
            if kept is not None:
                kept.clear()

        self._forget = weakref.finalize(self, register_optimizer_step_post_hook(clear).remove)

"""What the engine refuses to differentiate."""

from torch import nn

from metalearn.registry import UserError


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

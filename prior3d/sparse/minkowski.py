"""Load weights that were trained with MinkowskiEngine."""

from collections.abc import Mapping

from torch import Tensor, nn

from prior3d.errors import UserError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Names under which training scripts store the weights in a checkpoint."""

_SHOWN = 3


def load_minkowski_state_dict(module: nn.Module, state: Mapping[str, object]) -> None:
    """Load a network's weights from a checkpoint of the same network in MinkowskiEngine.

    Our layers have the names, shapes and order of offsets of MinkowskiEngine 0.5, so the weights fit as they are. A
    checkpoint that holds the weights under `state_dict` or `model`, and the prefix `module.` of parallel training, are
    understood.

    Args:
        module: the network, for example `mink_unet34c(3, 20)`.
        state: what `torch.load` returned.

    Raises:
        UserError: names are missing or left over, or shapes differ; nothing is loaded then.

    >>> from prior3d.sparse import Convolution
    >>> trained, fresh = Convolution(2, 4, 3), Convolution(2, 4, 3)
    >>> load_minkowski_state_dict(fresh, {"state_dict": {"module.kernel": trained.kernel.detach()}})
    >>> bool((fresh.kernel == trained.kernel).all())
    True
    """
    given = _weights(state)
    wanted = module.state_dict()
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    misshapen = [
        f"{name} {list(given[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    faults = {"lacks": missing, "has besides": unknown, "has": misshapen}
    if any(faults.values()):
        what = "; ".join(f"{verb} {_listed(names)}" for verb, names in faults.items() if names)
        raise UserError(f"these are not weights of this {type(module).__name__}: the checkpoint {what}")
    module.load_state_dict(given)


def _weights(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors by name, without wrappers and prefixes."""
    inner = next((state[name] for name in _WRAPPERS if isinstance(state.get(name), Mapping)), None)
    if inner is not None:
        return _weights(inner)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"the checkpoint holds no tensors, only {_listed(sorted(map(str, state)))}")
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

"""How the priors get along: norms and cosines of their gradients at the encoder's output maps."""

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from prior3d.pretraining.objective import JointObjective, Losses


def compare_gradients(losses: Losses, maps: Mapping[int, Tensor], objective: JointObjective) -> dict[str, Tensor]:
    """Return the norm of each weighted loss's gradient and the cosine between each two, at the encoder's maps.

    Taken at the maps and not at the parameters: no second pass through the backbone, at nearly the same cosines. Two
    priors that encode different images have no map in common; their cosine says nothing and is left out.

    Args:
        losses: of this step, before its backward pass; the graph is kept.
        maps: stride to flat map of the one backbone pass.
        objective: says which images each prior encodes.

    Returns:
        `norm/<label>` and `cosine/<label>/<label>`, float32 scalars.
    """
    tensors = [tensor for tensor in maps.values() if tensor.requires_grad]
    if not tensors:
        return {}
    gradients = {}
    for label, loss in losses.weighted.items():
        parts = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
        gradients[label] = [part.float() for part in _zeros_for_none(parts, tensors)]
    norms = {label: _dot(gradient, gradient).sqrt() for label, gradient in gradients.items()}
    result = {f"norm/{label}": norm for label, norm in norms.items()}
    for first, second in combinations(gradients, 2):
        if set(objective.priors[first].encodes) & set(objective.priors[second].encodes):
            scale = (norms[first] * norms[second]).clamp_min(1e-20)
            result[f"cosine/{first}/{second}"] = _dot(gradients[first], gradients[second]) / scale
    return result


def _zeros_for_none(parts: tuple[Tensor | None, ...], tensors: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(tensor) if part is None else part for part, tensor in zip(parts, tensors, strict=True)]


def _dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return sum((a * b).sum() for a, b in zip(first, second, strict=True))

"""Optimizer, parameter groups and learning-rate schedule of a run."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prior3d.backbone.optimization import cosine_fall, decaying_groups, warm_up

if TYPE_CHECKING:
    from prior3d.recipe import OptimSection


def make_optimizer(encoder: nn.Module, others: list[nn.Module], options: "OptimSection") -> torch.optim.Optimizer:
    """Return the optimizer over all trainable parameters.

    Weight decay applies only to matrices and kernels, never to norms, biases or other vectors. The encoder's learning
    rate is scaled by `encoder_lr_scale`, for encoders that start from good weights while heads start from random ones.
    On CUDA the step is fused: a few launches for all parameters.
    """
    groups = []
    rates = ((encoder, options.lr * options.encoder_lr_scale), *((module, options.lr) for module in others))
    for module, rate in rates:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups += decaying_groups(parameters, rate, options.weight_decay)
    fused = True if all(parameter.is_cuda for group in groups for parameter in group["params"]) else None
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=options.lr, fused=fused)


def keep_kernels(state: dict[str, Any], on_gpu: bool) -> None:
    """Choose how a saved optimizer goes on: fused on a GPU, and not elsewhere, wherever it was saved.

    Args:
        state: state dict of an optimizer, changed in place: it would else bring its kernels with it.
        on_gpu: whether its parameters are on a GPU.
    """
    for group in state["param_groups"]:
        group["fused"] = True if on_gpu else None


def learning_rate_factor(options: "OptimSection", max_steps: int) -> Callable[[int], float]:
    """Return the learning-rate factor at an optimizer step: linear warm-up, then the schedule down to 0.

    Args:
        options: `schedule` is cosine, poly ((1 - t) ** poly_power) or constant.
        max_steps: number of steps of the whole run.
    """

    def factor(step: int) -> float:
        progress = min(step / max(max_steps, 1), 1.0)
        decay = {
            "cosine": cosine_fall(progress, 1),
            "poly": (1 - progress) ** options.poly_power,
            "constant": 1.0,
        }[options.schedule]
        return decay * warm_up(step, options.warmup)

    return factor

"""A probe that measures with the field of another plugin."""

import torch
from matplotlib.figure import Figure
from torch.nn.functional import adaptive_avg_pool2d

from prior3d import Probe, by_group
from prior3d.contracts.probe import Measured


class FlowError(Probe):
    """How well a linear map of frozen features tells the flow; the control knows only the mean flow.

    Args:
        ridge: pull of the linear map toward 0.
    """

    needs = ("image", "acme/flow")
    trains = True
    lower_is_better = frozenset({"flow RMSE"})

    def __init__(self, *, ridge: float = 1e-2):
        self.ridge = ridge

    def measure(self, model, data, seed=0):
        cells, flow = self._of(model, data, "train")
        with_ones = torch.cat([cells, torch.ones_like(cells[..., :1])], -1).flatten(0, 1)
        square = with_ones.T @ with_ones + self.ridge * len(with_ones) * torch.eye(with_ones.shape[1])
        weight = torch.linalg.solve(square, with_ones.T @ flow.flatten(0, 1))
        cells, flow = self._of(model, data, "held_out")
        found = torch.cat([cells, torch.ones_like(cells[..., :1])], -1) @ weight
        return Measured(self._scores(found - flow, data), found[0].norm(dim=-1))

    def summarize(self, total):
        return {"flow RMSE": float((total["squares"] / total["cells"]).sqrt())}

    def controls(self, data):
        size = tuple(side // 4 for side in data.size)
        mean = self._flow(data, "train", size).mean((0, 1))
        return {"mean flow": self._scores(mean - self._flow(data, "held_out", size), data)}

    def plot(self, models, data, shown):
        figure = Figure((3, 2))
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            axes.plot(shown[name])
            axes.set_title(name)
        return {"flow": figure}

    def _of(self, model, data, part):
        """Return features and flow of every cell, [N, cells, C] and [N, cells, 2]."""
        rows = torch.arange(len(data.frames[part]))
        maps = torch.cat([one.take(rows).float() for one in data.features(model, part)], 1)
        return maps.flatten(2).movedim(1, -1), self._flow(data, part, maps.shape[-2:])

    def _flow(self, data, part, size):
        flow = data.field(part, "acme/flow")
        return adaptive_avg_pool2d(flow.take(torch.arange(len(flow))), size).flatten(2).movedim(1, -1)

    def _scores(self, error, data):
        squares = error.square().sum((1, 2))
        return by_group(
            *data.groups("held_out"), {"squares": squares, "cells": torch.full_like(squares, error.shape[1])}
        )

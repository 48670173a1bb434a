"""A prior that reads the field of another plugin."""

import torch

from prior3d import Prior


class Follow(Prior):
    """Predicts where pixels go from one stop to the next."""

    needs = ("acme/flow",)

    def __init__(self, backbone):
        super().__init__(backbone)
        self.head = torch.nn.Conv2d(backbone.dense_channels, 2, 1)

    def forward(self, batch, features):
        flow = batch["acme/flow"].flatten(0, 1)
        target = torch.nn.functional.adaptive_avg_pool2d(flow, self.backbone.dense_size)
        loss = (self.head(features["image"].dense.flatten(0, 1)) - target).abs().mean()
        return loss + self.zero(features), {"flow": flow.mean()}

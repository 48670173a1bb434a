"""From light to bytes: how bright each view is taken, and the noise of the sensor."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Seed = tuple[int, ...]

_NOISE = 2  # names the stream apart from those a room spawns


@dataclass(frozen=True)
class Sensor:
    """How the views of a room are taken.

    Attributes:
        gains: [F, 3] factors on the colours of each view: exposure and white balance.
        noise: standard deviation of what is added to every channel of every pixel, of a range of 0..1.
        seed: of the noise; each view has a stream of its own.
    """

    gains: np.ndarray
    noise: float = 0.0
    seed: Seed = (0,)

    def take(self, colors: Tensor, first: int) -> np.ndarray:
        """Return the images [n, H, W, 3] uint8 of n views.

        Args:
            colors: [3, n, H, W] light, 1 is white.
            first: number of the first of these views.
        """
        views = range(first, first + colors.shape[1])
        colors = colors * torch.from_numpy(self.gains[views.start : views.stop]).float().T[:, :, None, None]
        if self.noise:
            for number, view in enumerate(views):
                stream = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_NOISE, view)))
                drawn = stream.standard_normal((3, *colors.shape[2:]), dtype=np.float32)
                colors[:, number] += self.noise * torch.from_numpy(drawn)
        return (colors.clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0).contiguous().numpy()


def draw_sensor(rng: np.random.Generator, frames: int, exposure: float, noise: float, seed: Seed) -> Sensor:
    """Draw how the views of a room are exposed.

    Args:
        rng: source of randomness of the exposure.
        frames: number of views.
        exposure: see `SyntheticRooms`.
        noise: see `Sensor`.
        seed: see `Sensor`.
    """
    spread = rng.uniform(-1, 1, (frames, 1)) + rng.uniform(-0.25, 0.25, (frames, 3))
    return Sensor(np.exp(exposure * spread), noise, seed)

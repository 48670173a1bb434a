"""From light to bytes: the exposure of each view and the noise of the sensor."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Seed = tuple[int, ...]

_NOISE = 2  # separates this stream from those that a room spawns


@dataclass(frozen=True)
class Sensor:
    """Exposure and noise of the views of a room.

    Attributes:
        gains: Factors [F, 3] on the colors of each view: exposure and white balance.
        noise: Standard deviation of the noise on every channel of every pixel, for values in 0..1.
        seed: Seed of the noise; each view has its own stream.
    """

    gains: np.ndarray
    noise: float = 0.0
    seed: Seed = (0,)

    def take(self, colors: Tensor, first: int) -> np.ndarray:
        """Return the images [n, H, W, 3] uint8 of n views.

        Args:
            colors: Light [3, n, H, W]; 1 is white.
            first: Index of the first of these views.
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
    """Draw the exposure of the views of a room.

    Args:
        rng: Source of randomness of the exposure.
        frames: Number of views.
        exposure: See `SyntheticRooms`.
        noise: See `Sensor`.
        seed: See `Sensor`.
    """
    spread = rng.uniform(-1, 1, (frames, 1)) + rng.uniform(-0.25, 0.25, (frames, 3))
    return Sensor(np.exp(exposure * spread), noise, seed)

"""Seeds derived from their purpose, so random state is never stored or passed on.

Every use of randomness names itself, for example (seed, step, rank, prior's label), and gets its own stream. A new
prior does not change the draws of others, the number of loader workers has no effect, and a resumed run makes the same
draws as an uninterrupted one.
"""

import hashlib
import random

import numpy as np
import torch

__all__ = ["generator", "reseed", "stream_seed"]


def stream_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and nothing else (stable across machines and versions)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator for the stream named by `parts`."""
    return torch.Generator().manual_seed(stream_seed(*parts))


def reseed(*parts: int | str) -> None:
    """Seed the global generators of torch (all devices), numpy and random for the stream named by `parts`."""
    seed = stream_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

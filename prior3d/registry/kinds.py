"""The kinds of plugins, and what the plugins of each derive from."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["priors", "datasets", "probes"]


@dataclass(frozen=True)
class Contract:
    """What the plugins of a kind derive from.

    Attributes:
        base: `module:Class`.
        version: of the contract this package speaks.
        told: what the constructor is told by position; everything else it takes is an option of the recipe.
    """

    base: str
    version: int
    told: tuple[str, ...]


KINDS: dict[Kind, Contract] = {
    "priors": Contract("prior3d.contracts.prior:Prior", 1, ("backbone",)),
    "datasets": Contract("prior3d.contracts.dataset:Dataset", 1, ("spec",)),
    "probes": Contract("prior3d.contracts.probe:Probe", 1, ()),
}
"""The kinds of plugins; the entry-point group of a kind is `prior3d.<kind>`."""

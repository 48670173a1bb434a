"""The kinds of plugins, and the base classes of each kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["priors", "datasets", "readers", "probes", "engines", "exporters", "runners"]


@dataclass(frozen=True)
class Contract:
    """The base classes and the constructor of the plugins of a kind.

    Attributes:
        base: `module:Class`.
        version: version of the contract that this package supports.
        positional: arguments that the constructor gets by position; all its other arguments are options of the recipe.
        bases: names of the base classes that identify plugins in a file, to the prefix of the plugin's name: a class
            `Quick(SparseEngine)` is `sparse/quick`.
        former: former names of its members to the names of today, to warn of plugins that still define them.
    """

    base: str
    version: int
    positional: tuple[str, ...] = ()
    bases: Mapping[str, str] = field(default_factory=dict)
    former: Mapping[str, str] = field(default_factory=dict)


KINDS: dict[Kind, Contract] = {
    "priors": Contract("prior3d.contracts.prior:Prior", 1, ("backbone",), {"Prior": ""}, {"draw": "plot"}),
    "datasets": Contract(
        "prior3d.contracts.dataset:Dataset",
        3,
        ("spec",),
        {"Dataset": "", "PosedDataset": "", "SingleImages": ""},
    ),
    "readers": Contract("prior3d.contracts.reader:Reader", 1, ("root",), {"Reader": ""}),
    "probes": Contract("prior3d.contracts.probe:Probe", 1, (), {"Probe": ""}, {"draw": "plot"}),
    "engines": Contract(
        "prior3d.contracts.engine:Engine",
        1,
        (),
        {"SparseEngine": "sparse/", "SplatEngine": "splat/", "NeighborEngine": "neighbors/"},
    ),
    "exporters": Contract("prior3d.contracts.exporter:Exporter", 1, (), {"Exporter": ""}),
    "runners": Contract("prior3d.contracts.runner:Runner", 1, (), {"Runner": ""}),
}
"""The kinds of plugins; the entry-point group of a kind is `prior3d.<kind>`."""

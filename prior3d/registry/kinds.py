"""The kinds of plugins, and what the plugins of each derive from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["priors", "datasets", "readers", "probes", "engines", "exporters", "runners"]


@dataclass(frozen=True)
class Contract:
    """What the plugins of a kind derive from.

    Attributes:
        base: `module:Class`.
        version: of the contract this package speaks.
        positional: what the constructor gets by position; everything else it takes is an option of the recipe.
        bases: names of classes to derive from, by which a file is recognized, to the prefix of the plugin's name:
            a class `Quick(SparseEngine)` is `sparse/quick`.
    """

    base: str
    version: int
    positional: tuple[str, ...] = ()
    bases: Mapping[str, str] = field(default_factory=dict)


KINDS: dict[Kind, Contract] = {
    "priors": Contract("prior3d.contracts.prior:Prior", 1, ("backbone",), {"Prior": ""}),
    "datasets": Contract(
        "prior3d.contracts.dataset:Dataset",
        3,
        ("spec",),
        {"Dataset": "", "PosedDataset": "", "SingleImages": ""},
    ),
    "readers": Contract("prior3d.contracts.reader:Reader", 1, ("root",), {"Reader": ""}),
    "probes": Contract("prior3d.contracts.probe:Probe", 1, (), {"Probe": ""}),
    "engines": Contract(
        "prior3d.contracts.engine:Engine",
        1,
        (),
        {"SparseEngine": "sparse/", "SplatEngine": "splat/", "NeighbourEngine": "neighbours/"},
    ),
    "exporters": Contract("prior3d.contracts.exporter:Exporter", 1, (), {"Exporter": ""}),
    "runners": Contract("prior3d.contracts.runner:Runner", 1, (), {"Runner": ""}),
}
"""The kinds of plugins; the entry-point group of a kind is `prior3d.<kind>`."""

"""Which plugins there are, without importing any, and what their constructors take."""

from prior3d.registry.kinds import KINDS, Contract, Kind
from prior3d.registry.registry import Plugin, Registry, current, in_force

__all__ = ["KINDS", "Contract", "Kind", "Plugin", "Registry", "current", "in_force"]

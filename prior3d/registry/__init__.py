"""The available plugins, listed without importing any, and the options of their constructors."""

from prior3d.registry.kinds import KINDS, Contract, Kind
from prior3d.registry.registry import Plugin, Registry, current, in_force

__all__ = ["KINDS", "Contract", "Kind", "Plugin", "Registry", "current", "in_force"]

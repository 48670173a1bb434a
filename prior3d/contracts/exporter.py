"""The contract of an exporter: weights and their description to another library's file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import nn


class Exporter(ABC):
    """Writes a trained encoder as another library reads it; subclasses take typed keyword options."""

    contract: ClassVar[int] = 1

    @abstractmethod
    def export(self, model: "nn.Module", description: Mapping[str, object], target: Path) -> Path:
        """Write the weights and check what was written by reading it back.

        Args:
            model: the timm model, as trained, without a classifier.
            description: what the weights are: `model` (timm name), `timm_options`, `mean`, `std`, ...
            target: file or folder; it appears whole or not at all.

        Returns:
            What was written.

        Raises:
            UserError: this model has no form in the other library, or the target cannot be written.
        """

"""The contract of an exporter: it converts weights and their description to another library's file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import nn


class Exporter(ABC):
    """A writer of trained encoders in another library's format; subclasses take typed keyword options.

    Attributes:
        contract: version of this contract. A plugin that sets the number it was written for is refused, in one line, by
            a prior3d with another number.
    """

    contract: ClassVar[int] = 1

    @abstractmethod
    def export(self, model: "nn.Module", description: Mapping[str, object], target: Path) -> Path:
        """Write the weights and check the file by reading it back.

        Args:
            model: the timm model, as trained, without a classifier.
            description: description of the weights: `model` (timm name), `timm_options`, `mean`, `std`, ...
            target: file or folder to write; it appears complete or not at all.

        Returns:
            The path that was written.

        Raises:
            UserError: the other library cannot represent this model, or the target cannot be written.
        """

"""Libraries of the extra `formats`, imported where a format needs them."""

import importlib
from types import ModuleType

from prior3d.errors import UserError


def library(module: str, purpose: str, key: str | None = "root") -> ModuleType:
    """Import a library of the extra `formats`.

    Args:
        module: Name of its module, such as `cv2`.
        purpose: What needs it, for the message: "reading EXR files".
        key: Option that the message is about.

    Raises:
        UserError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        advice = "pip install 'prior3d[formats]'"
        raise UserError(f"{purpose} needs the module {module}, which is not installed: {advice}", key) from error

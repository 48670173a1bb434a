"""Reading and writing weights: local files into an encoder with every mismatch named, exports that timm loads."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from prior3d.errors import UserError
from prior3d.files import write_atomically

_SHOWN = 5
"""How many mismatches a message names before it counts the rest."""


def read_weights(path: Path, key: str | None = "backbone.weights") -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or a torch file.

    Args:
        path: the file; torch files are read with `weights_only=True` and may nest the weights under `state_dict`,
            `model` or `module`.
        key: recipe key that errors name.

    Raises:
        UserError: the file is missing or holds no weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no such file: {path}", key)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, ImportError) as error:
        raise UserError(f"{path} is not a weight file: {_first_line(error)}", key) from error
    except Exception as error:  # the unpickler raises its own types, from a module that is private
        raise UserError(f"{path} cannot be read as plain weights: {_first_line(error)}", key) from error
    for name in ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict (a mapping of names to tensors)", key)
    return dict(content)


def load_encoder(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, key: str | None = "backbone.weights"
) -> None:
    """Load a timm state dict into a timm model made without its classifier; nothing but the classifier may differ.

    Args:
        model: timm model, `num_classes=0`.
        weights: names to tensors, as timm writes them.
        source: how errors name where the weights came from.
        key: recipe key that errors name.

    Raises:
        UserError: names that are missing, unexpected or of another shape, the first few by name.
    """
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    prefixes = tuple(f"{name}." for name in classifiers)
    wanted = model.state_dict()
    given = {name: value for name, value in weights.items() if name in wanted or not name.startswith(prefixes or "\0")}
    mismatches = find_mismatches(wanted, given)
    if mismatches:
        raise UserError(f"{source} does not fit the model: {summarise(mismatches)}", key)
    model.load_state_dict(given)


def find_mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return every way in which one state dict does not fit another, in words."""
    missing = [f"{name} is missing" for name in wanted if name not in given]
    unexpected = [f"{name} is unexpected" for name in given if name not in wanted]
    shapes = [
        f"{name} is {list(given[name].shape)} and should be {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    return shapes + missing + unexpected


def summarise(mismatches: list[str]) -> str:
    """Return the first few mismatches and how many more there are."""
    more = f" and {len(mismatches) - _SHOWN} more" if len(mismatches) > _SHOWN else ""
    return "; ".join(mismatches[:_SHOWN]) + more


def save_weights(path: str | Path, weights: Mapping[str, Tensor], description: Mapping[str, object]) -> None:
    """Write weights as safetensors, atomically, with a description in the file's own metadata.

    Args:
        path: the file; it appears whole or not at all.
        weights: names to tensors of any device and layout.
        description: what they are; kept as JSON under the key `prior3d`.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    write_atomically(Path(path), to_bytes(plain, metadata={"format": "pt", "prior3d": json.dumps(description)}))


def read_description(path: Path) -> dict[str, object]:
    """Return the description that `save_weights` put into a file; empty for files of others.

    Raises:
        UserError: a `.safetensors` that cannot be read.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("prior3d", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a weight file: {_first_line(error)}") from error


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of names, types, shapes and values, whatever file they are from."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

"""Weights: loading files of any origin into an encoder, with every mismatch named, and exports that timm loads."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from prior3d.backbone.weight_files import (
    DECODER_FILE,
    encoder_of_run,
    find_state_dict,
    refuse_foreign,
    unpickling_message,
)
from prior3d.errors import UserError
from prior3d.files import write_atomically
from prior3d.messages import first_line

_SHOWN = 5
"""Number of mismatches that a message names before it counts the rest."""

_OURS = ("backbone.encoder.model.", "encoder.model.")
"""Prefixes of the trained encoder in prior3d's own checkpoints and initial weights."""


def read_weights(path: Path, key: str | None = "weights") -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or a torch file, or the trained encoder from a run folder.

    Args:
        path: the file or run folder; torch files are read with `weights_only=True` and may nest the weights under
            `state_dict`, `model`, `module` and similar keys. Several state dicts side by side (`student`, `teacher`)
            are distinguished by their keys, which then prefix all names.
        key: option that errors name.

    Raises:
        UserError: the file is missing or contains no weights.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = encoder_of_run(path, key)
    if not path.is_file():
        raise UserError(f"no such file: {path}", key)
    try:
        refuse_foreign(path, key)
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(unpickling_message(path), key) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, ImportError, LookupError) as error:
        raise UserError(f"{path} is not a weight file, or is cut off: {first_line(error)}", key) from error
    found = find_state_dict(content)
    if not found:
        raise UserError(f"{path} holds no state dict (a mapping of names to tensors)", key)
    return found


def load_encoder(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, key: str | None = "weights"
) -> str | None:
    """Load a timm state dict into a timm model without classifier; only the classifier may differ.

    A prefix of all names, such as `module.` or `student.backbone.`, is removed if the remaining names then all fit.

    Args:
        model: timm model, `num_classes=0`.
        weights: names to tensors, in timm's naming.
        source: name of the origin of the weights in errors.
        key: option that errors name.

    Returns:
        A sentence about the removed prefix and the number of ignored tensors; None if there was no prefix.

    Raises:
        UserError: names are missing, unexpected or of another shape (the message has the first few); the file has
            several models; or weights are NaN or infinite.
    """
    wanted = model.state_dict()
    prefix = _find_prefix(wanted, weights, source, key)
    given = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    classifiers = _classifier_prefixes(model)
    given = {name: value for name, value in given.items() if name in wanted or not name.startswith(classifiers)}
    mismatches = find_mismatches(wanted, given)
    if mismatches:
        without = f" without the prefix {prefix!r} of its names" if prefix else ""
        raise UserError(f"{source} does not fit the model{without}: {summarize(mismatches)}", key)
    refuse_not_finite(given, source, key)
    model.load_state_dict(given)
    if not prefix:
        return None
    rest = sum(not name.startswith(prefix) for name in weights)
    left = f"; {rest} tensors that do not belong to it are left out" if rest else ""
    return f"{source}: the names of the encoder begin with {prefix!r}, which is taken off{left}"


def load_decoder_of_run(decoder: nn.Module, folder: Path, key: str | None = "weights") -> str:
    """Load the trained decoder of a run into one of the same shape; a decoder of another shape is not changed.

    Args:
        decoder: changed in place if the run's decoder fits.
        folder: folder of the run.
        key: option that errors name.

    Returns:
        A sentence that states whether it was loaded.

    Raises:
        UserError: the file cannot be read, or contains NaN or infinity.
    """
    file = folder.expanduser() / DECODER_FILE
    given = read_weights(file, key) if file.is_file() else {}
    if find_mismatches(decoder.state_dict(), given):
        why = "is of another shape" if given else "is not there"
        return f"{folder}: the decoder starts from random weights, as that of the run {why}"
    refuse_not_finite(given, str(file), key)
    decoder.load_state_dict(given)
    return f"{folder}: encoder and decoder start from the trained weights of this run"


def refuse_not_finite(weights: Mapping[str, Tensor], source: str, key: str | None = None) -> None:
    """Raise UserError, with the first tensor's name, if weights contain NaN or infinity.

    >>> refuse_not_finite({"conv.weight": torch.tensor([1.0, torch.nan])}, "a.pth")
    Traceback (most recent call last):
    prior3d.errors.UserError: a.pth holds NaN or infinity in conv.weight: take an earlier checkpoint or other weights
    """
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{source} holds NaN or infinity in {name}: take an earlier checkpoint or other weights", key
            )


def _find_prefix(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str, key: str | None) -> str:
    """Return the prefix of names under which the complete model is found, else the one under which most of it is."""
    if not wanted or all(name in given for name in wanted):
        return ""
    longest = max(wanted, key=len)  # least likely to be the end of another name
    found = [name.removesuffix(longest) for name in given if name.endswith(f".{longest}")]
    whole = [prefix for prefix in found if all(_fits(given.get(prefix + name), one) for name, one in wanted.items())]
    ours = [prefix for prefix in _OURS if prefix in whole]
    if len(whole) > 1 and not ours:
        raise UserError(
            f"{source} holds {len(whole)} models, with names that begin with {', '.join(sorted(whole))}; save the one"
            " that you mean to a file of its own",
            key,
        )
    if whole:
        return ours[0] if ours else whole[0]
    most = max(found, key=lambda prefix: sum(prefix + name in given for name in wanted), default="")
    return most if sum(most + name in given for name in wanted) > sum(name in given for name in wanted) else ""


def _fits(given: Tensor | None, wanted: Tensor) -> bool:
    return given is not None and given.shape == wanted.shape


def _classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))


def find_mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Describe all mismatches between two state dicts."""
    missing = [f"{name} is missing" for name in wanted if name not in given]
    unexpected = [f"{name} is unexpected" for name in given if name not in wanted]
    shapes = [
        f"{name} is {list(given[name].shape)} and should be {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    return shapes + missing + unexpected


def summarize(mismatches: list[str]) -> str:
    """Return the first few mismatches and the number of remaining ones."""
    more = f" and {len(mismatches) - _SHOWN} more" if len(mismatches) > _SHOWN else ""
    return "; ".join(mismatches[:_SHOWN]) + more


def save_weights(path: str | Path, weights: Mapping[str, Tensor], description: Mapping[str, object]) -> None:
    """Write weights as safetensors, atomically, with a description in the file's own metadata.

    Args:
        path: the file; it appears complete or not at all. Equal weights and descriptions give equal bytes.
        weights: names to tensors of any device and layout.
        description: description of the weights; stored as JSON under the key `prior3d`.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    about = {"format": "pt", "prior3d": json.dumps(description, sort_keys=True)}
    write_atomically(Path(path), _with_sorted_header(to_bytes(plain, metadata=about)))


def _with_sorted_header(content: bytes) -> bytes:
    """Return a safetensors file with sorted metadata keys: the library writes them in random order."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def read_description(path: Path) -> dict[str, object]:
    """Return the description that `save_weights` stored in a file; empty for other files.

    Raises:
        UserError: a `.safetensors` file cannot be read.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("prior3d", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a weight file: {first_line(error)}") from error


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of names, types, shapes and values, independent of the file format."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

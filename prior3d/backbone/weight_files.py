"""Files that are not plain weights: run folders, nested checkpoints, and files that only look like weights."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from prior3d.errors import UserError

ENCODER_FILE = "backbone.safetensors"
"""The trained encoder in a run folder."""

DECODER_FILE = "decoder.safetensors"
"""The trained decoder in a run folder, if there is one."""

_NESTS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
"""Keys under which checkpoints store the weights, in search order."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def encoder_of_run(folder: Path, key: str | None) -> Path:
    """Return the file of the trained encoder in a run folder.

    Raises:
        UserError: the run is not complete, or the folder is not a run.
    """
    if (folder / ENCODER_FILE).is_file():
        return folder / ENCODER_FILE
    if (folder / "recipe.yaml").is_file():
        go_on = f"resume it with: prior3d-train --resume {folder}"
        raise UserError(f"the run in {folder} is not complete: it holds no {ENCODER_FILE}; {go_on}", key)
    files = sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES)
    advice = f"; name a file in it, such as {files[0]}" if files else ""
    raise UserError(f"{folder} is a folder but not a run: it holds no {ENCODER_FILE}{advice}", key)


def refuse_foreign(path: Path, key: str | None) -> None:
    """Reject a file whose first bytes do not match the type in its name."""
    with path.open("rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    is_safetensors = size > 9 and int.from_bytes(head[:8], "little") < size and head[8:9] == b"{"
    if is_safetensors != (path.suffix == ".safetensors") and (is_safetensors or head.startswith(b"PK\x03\x04")):
        kind, suffix = ("safetensors", ".safetensors") if is_safetensors else ("torch", ".pth")
        raise UserError(f"the content of {path} is a {kind} file: rename it to end in {suffix}", key)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS and not the file itself: fetch it with git lfs pull", key)
    if not size:
        raise UserError(f"{path} is not a weight file: it is empty", key)
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        beginning = head.decode().split("\n")[0][:32]
        raise UserError(f"{path} is not a weight file: it is text, and begins with {beginning!r}", key)


def unpickling_message(path: Path) -> str:
    """Describe the non-tensor content of a torch file that cannot be read as plain weights, and the remedy."""
    try:
        types = get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError):
        types = []
    if not types:
        return f"{path} cannot be read as plain weights: it is not a torch file, is damaged, or holds other objects"
    shown = ", ".join(types[:3]) + (", ..." if len(types) > 3 else "")
    nest = next((f"[{name!r}]" for name in _NESTS if _mentions(path, name)), "")
    return (
        f"{path} cannot be read as plain weights: it also holds {shown}, which could run code; if you trust it,"
        f" save its weights alone: torch.save(torch.load({str(path)!r}, weights_only=False){nest}, 'weights.pth')"
    )


def _mentions(path: Path, name: str) -> bool:
    """Whether the pickle in a torch file contains exactly this text, for example as a key."""
    with zipfile.ZipFile(path) as archive:
        pickles = [entry for entry in archive.namelist() if entry.endswith("/data.pkl")]
        text = b"X" + len(name).to_bytes(4, "little") + name.encode()
        return any(text in archive.read(entry) for entry in pickles)


def find_state_dict(content: object) -> dict[str, Tensor]:
    """Return the tensors of a file's content by name; empty if it has no state dict."""
    for name in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        return {}
    if all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    nested = {name: value for name, value in content.items() if _is_state_dict(value)}
    if len(nested) == 1:
        return dict(*nested.values())
    return {f"{name}.{inner}": tensor for name, value in nested.items() for inner, tensor in value.items()}


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )

"""Export to timm: one safetensors file that `timm.create_model` loads unchanged, and a description next to it."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from prior3d import Exporter, UserError
from prior3d.backbone import save_weights
from prior3d.files import write_json

_TOLERANCE = 1e-4
"""Largest accepted difference of features, relative to the largest one: equal weights may run in other kernels."""


class Timm(Exporter):
    """Write weights that load strictly into `timm.create_model(model, num_classes=0)`, and a description.

    `<name>.safetensors` holds the weights, `<name>.json` the model's name and arguments, and the mean and standard
    deviation that images are normalized with; the metadata of the weights file repeat them. The export is read back
    into a new timm model, whose features must equal those of the given model.
    """

    def export(self, model: nn.Module, description: Mapping[str, object], target: Path) -> Path:
        """Write the weights and their description.

        Args:
            model: the timm model, as trained, without a classifier.
            description: `model`, `timm_options`, `mean`, `std`, ...
            target: a file that ends in .safetensors, or an existing folder, in which the file gets the model's name.

        Returns:
            The path of the weights file.

        Raises:
            UserError: the target cannot be written, or timm builds a different model under that name.
        """
        file = target / f"{str(description['model']).replace('/', '_')}.safetensors" if target.is_dir() else target
        if file.suffix != ".safetensors":
            raise UserError(f"{target} must end in .safetensors, or be an existing folder")
        if not file.parent.is_dir():
            raise UserError(f"there is no folder {file.parent}")
        again = _create(description)
        unlike = _unlike(model.state_dict(), again.state_dict())
        if unlike:
            raise UserError(f"this model differs from timm's {description['model']}: {unlike}")
        facts = {"what": "encoder", **description}
        part = file.with_name(f".{file.stem}.part.safetensors")
        try:
            save_weights(part, model.state_dict(), facts)
            again.load_state_dict(load_file(part), strict=True)
            _compare(model, again)
            part.replace(file)
            write_json(file.with_suffix(".json"), {**facts, "use": _how_to_use(description, file.name)})
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
        return file


def _create(description: Mapping[str, object]) -> nn.Module:
    options = dict(description.get("timm_options") or {})
    return timm.create_model(str(description["model"]), pretrained=False, num_classes=0, **options).eval()


def _unlike(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> str | None:
    """Return the first tensor name that only one of two models has, or whose shapes differ."""
    for name in dict.fromkeys([*ours, *theirs]):
        shapes = [list(weights[name].shape) if name in weights else "missing" for weights in (ours, theirs)]
        if shapes[0] != shapes[1]:
            return f"{name} is {shapes[0]} here and {shapes[1]} there"
    return None


@torch.no_grad()
def _compare(model: nn.Module, again: nn.Module) -> None:
    """Raise an error if the weights, read back, give other features than the exported model."""
    size = again.pretrained_cfg.get("input_size", (3, 224, 224))
    images = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    ours, theirs = deepcopy(model).eval().cpu().forward_features(images), again.forward_features(images)
    difference, largest = (ours - theirs).abs().max().item(), ours.abs().max().item()
    if not difference <= _TOLERANCE * max(largest, 1e-12):
        raise UserError(
            f"the features of the written file differ by {difference:.2g} of {largest:.2g}: nothing is exported"
        )


def _how_to_use(description: Mapping[str, object], name: str) -> str:
    options = "".join(f", {key}={value!r}" for key, value in dict(description.get("timm_options") or {}).items())
    return (
        f"model = timm.create_model({description['model']!r}, num_classes=0{options});"
        f" model.load_state_dict(safetensors.torch.load_file({name!r})); images are (0..1 - mean) / std"
    )

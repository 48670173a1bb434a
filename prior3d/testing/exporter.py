"""The contract of an exporter in one function: `check_exporter`."""

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from prior3d.contracts.exporter import Exporter
from prior3d.errors import UserError
from prior3d.registry.schema import validate_options
from prior3d.testing.members import check_members

_MODEL = "test_resnet"


def check_exporter(
    cls: type[Exporter],
    target: str,
    features: Callable[[Path, Tensor], Tensor],
    options: Mapping[str, object] | None = None,
    model: str = _MODEL,
    tolerance: float = 1e-4,
) -> Exporter:
    """Assert that an exporter keeps its contract, on a small timm model with random weights.

    It checks that the constructor is a schema; the returned paths are the written files and lie at the target; the
    output gives the model's own features, and other features for other weights; the model and the description stay
    unchanged; writing again replaces the previous output; temporary files are deleted; weights with NaN, and targets
    whose folder is missing or is a file, are refused with a `UserError`, and nothing is left behind.

    Args:
        cls: class of the exporter.
        target: file or folder to write, relative to an existing folder, for example "model.safetensors".
        features: reads the output at a path and returns the features of images [N, 3, H, W], already normalized, as the
            other library would, in the shape of `forward_features`.
        options: its options, as in a recipe.
        model: name of the timm model.
        tolerance: maximum difference of features, relative to the largest feature.

    Returns:
        The exporter, for further tests.

    Raises:
        AssertionError: names the rule that is broken.
    """
    assert issubclass(cls, Exporter), f"{cls.__name__} is not a subclass of prior3d.Exporter"
    check_members(cls)
    assert inspect.getdoc(cls), f"{cls.__name__} has no docstring: users read it in listings"
    assert cls.contract == Exporter.contract, f"written for contract {cls.contract}, this is {Exporter.contract}"
    exporter = cls(**validate_options(cls, dict(options or {}), cls.__name__))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = _model(model, 0), _model(model, 1)
        for trained in (first, second, first):  # the last two replace the previous output
            _check_writes(exporter, trained, model, folder / target, features, tolerance)
        _check_complete(folder, target)
        _check_refusals(exporter, first, model, folder, target)
    return exporter


def _model(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=0).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics are weights too
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def _describe(name: str) -> dict[str, object]:
    return {"model": name, "timm_options": {}, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


@torch.no_grad()
def _check_writes(
    exporter: Exporter,
    trained: nn.Module,
    name: str,
    target: Path,
    features: Callable[[Path, Tensor], Tensor],
    tolerance: float,
) -> None:
    description = _describe(name)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    written = exporter.export(trained, description, target)
    assert isinstance(written, Path), f"export returns {type(written).__name__}, should be the path of what was written"
    assert written.exists(), f"export returns {written}, which is not there"
    assert written == target or written.is_relative_to(target), f"export writes {written}, asked for was {target}"
    assert description == _describe(name), "the description is changed"
    after = trained.state_dict()
    changed = [key for key, value in before.items() if key not in after or not torch.equal(value, after[key])]
    assert not changed and before.keys() == after.keys(), f"the model is changed: {changed[:3]}"
    assert not trained.training, "the model is left in training mode"
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted, found = trained.forward_features(images), features(written, images)
    assert found.shape == wanted.shape, f"features have shape {list(found.shape)}, the model's {list(wanted.shape)}"
    difference, largest = (found - wanted).abs().max().item(), wanted.abs().max().item()
    assert difference <= tolerance * largest, f"features differ by {difference:.2g} of {largest:.2g} from the model's"


def _check_complete(folder: Path, target: str) -> None:
    top = Path(target).parts[0]
    stem = Path(top).stem
    stray = [path.name for path in folder.iterdir() if path.name != top and path.stem != stem]
    hidden = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(".")]
    hidden += [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")]
    assert not stray + hidden, f"export leaves {sorted({*stray, *hidden})} behind"


def _check_refusals(exporter: Exporter, trained: nn.Module, name: str, folder: Path, target: str) -> None:
    (folder / "taken").write_text("a file")
    before = _contents(folder)
    for into in (folder / "missing" / "deeper" / target, folder / "taken" / target):
        _check_refusal(exporter, trained, name, into, "a target in a folder that is not there")
        assert _contents(folder) == before, "a target that is refused leaves something behind"
    broken = _model(name, 2)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    _check_refusal(exporter, broken, name, folder / target, "weights with NaN")
    assert _contents(folder) == before, "weights that are refused replace what was there, or leave something behind"


def _check_refusal(exporter: Exporter, trained: nn.Module, name: str, target: Path, what: str) -> None:
    refusal = None
    try:
        exporter.export(trained, _describe(name), target)
    except Exception as error:  # any exception is judged below
        refusal = error
    assert refusal is not None, f"{what} is not refused"
    kind = type(refusal).__name__
    assert isinstance(refusal, UserError), f"{what} raises {kind} ({refusal}), should be a UserError"
    assert str(refusal).strip(), f"{what} is refused without a reason"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

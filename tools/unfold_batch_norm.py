"""Give weights with folded BatchNorm statistics new statistics, so they can be trained.

    python tools/unfold_batch_norm.py folded.pth photographs --model mobilenetv2_100 --out unfolded.safetensors \
        --size 224 224 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --timm pad_type=same

Conversions for inference leave mean 0 and variance 1. In evaluation mode the network is the same, but in training mode
the batch statistics replace them and the network changes. Here each layer gets statistics from photographs like those
that the weights were trained on, and a scale and shift that undo their effect, so the output in evaluation mode stays
the same. The classifier and everything else are copied unchanged.

Photographs lie below the given folder. A hash of their names sets half of them aside: the half on which the probe
`shape_bias` measures accuracy. The others are read in batches of many classes.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.backbone.batch_norm import unfold_batch_norm
from prior3d.backbone.weights import load_encoder, read_weights, save_weights
from prior3d.contracts.dataset import DataSpec
from prior3d.errors import UserError
from prior3d.probes import ProbeData, mixed_batches
from prior3d.recipe.yaml12 import load
from prior3d_plugins.datasets.image_folder import ImageFolder


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0, or 2 if weights, model or photographs do not fit together."""
    options = _parser().parse_args(argv)
    try:
        images, layers = unfold(options)
    except UserError as error:
        print(f"unfold_batch_norm.py: {error}", file=sys.stderr)
        return 2
    print(f"{layers} layers unfolded with the statistics of {images} photographs: {options.out}")
    return 0


def unfold(options: argparse.Namespace) -> tuple[int, int]:
    """Write the unfolded weights; return the number of photographs read and of layers unfolded.

    Raises:
        UserError: if the weights do not fit the model or have nothing folded, or there are no photographs.
    """
    size = tuple(options.size)
    timm_options = {name: load(value, name).value for name, _, value in (one.partition("=") for one in options.timm)}
    backbone = Backbone(options.model, size, timm_options=timm_options, mean=options.mean, std=options.std)
    weights = read_weights(options.weights, None)
    load_encoder(backbone.encoder.model, weights, str(options.weights), None)
    with tempfile.TemporaryDirectory() as cache:
        photographs = ImageFolder(DataSpec(size, 1, "train", Path(cache)), root=options.images, test_fraction=0.5)
        forward = partial(backbone, reads=("dense", "pooled"))
        layers = unfold_batch_norm(backbone, forward, _batches(photographs))
    if not layers:
        raise UserError(f"{options.weights} has no layer whose statistics are folded away")
    about = {"model": options.model, "timm_options": timm_options}  # so the file names the model that it belongs to
    about |= {name: getattr(backbone.encoder, name).flatten().tolist() for name in ("mean", "std")}
    about |= {"made from": options.weights.name, "unfolded layers": layers, "photographs": len(photographs)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(options.out, weights | backbone.encoder.model.state_dict(), about)
    return len(photographs), layers


def _batches(photographs: ImageFolder) -> Iterator[Tensor]:
    """Yield all photographs, [N, 3, H, W] in 0..1, in an order that mixes their classes."""
    data = ProbeData({"held_out": photographs})
    try:
        yield from mixed_batches(data.field("held_out", "image"), stream="unfold_batch_norm")
    finally:
        data.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("weights", type=Path, help="a timm checkpoint, .safetensors or a torch file")
    add("images", type=Path, help="folder of photographs")
    add("--model", required=True, help="timm's name of the model")
    add("--out", type=Path, required=True, help="the .safetensors to write")
    add("--size", type=int, nargs=2, default=[224, 224], metavar=("HEIGHT", "WIDTH"), help="of images, pixels")
    add("--mean", type=float, nargs=3, help="what images are normalized with; the model's own by default")
    add("--std", type=float, nargs=3, help="likewise")
    add("--timm", nargs="*", default=[], metavar="KEY=VALUE", help="further arguments of timm.create_model")
    return parser


if __name__ == "__main__":
    sys.exit(main())

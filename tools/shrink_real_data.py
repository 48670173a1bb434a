"""Make the small copy of real data for tools/studies/real-*.yaml: `real/`, about 62 MB.

    python tools/shrink_real_data.py DATA real
    python tools/unfold_batch_norm.py DATA/weights/mobilenetv2_100_from_tflite.pth real/imagenet \
        --out real/weights/mobilenetv2_100_unfolded.safetensors --model mobilenetv2_100 --timm pad_type=same \
        --size 224 224 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5

DATA holds `rgbd/{office,kitchen-a,kitchen-b}` (frames of 640 x 480: 3DMatch and 7-Scenes), `camvid`, `pacs`,
`cue-conflict`, `imagenet-1-per-class` and `weights`. Depth keeps every other row and column and is never interpolated.
The last 12 frames of the office become a separate scene for model selection. Of CamVid's test images, only the drive
without a frame in the training images (Seq05V) is kept. Of PACS, 60 images per class are kept.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from prior3d.data.spacing import evenly_chosen

FOCAL = {"office": 570.342, "kitchen-a": 585.0, "kitchen-b": 585.0}
"""Focal length of the depth cameras at 640 x 480, in pixels; their centers are at (320, 240)."""

OFFICE_KEPT = 38
PACS_KEPT = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.out.exists():
        print(f"shrink_real_data.py: {options.out} already exists: remove it first", file=sys.stderr)
        return 2
    partial = options.out.with_name(f".{options.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for shrink in (shrink_rgbd, shrink_camvid, shrink_pacs, shrink_cue_conflicts, shrink_photographs):
        shrink(options.data, partial)
    partial.rename(options.out)
    return 0


def shrink_rgbd(data: Path, out: Path) -> None:
    for name, focal in FOCAL.items():
        frames = sorted((data / "rgbd" / name).glob("*.pose.txt"))
        for number, pose in enumerate(frames):
            scene = name
            if name == "office":
                scene = "office-a" if number < OFFICE_KEPT else "office-b"
            folder = new_folder(out / "rgbd" / scene)
            stem = pose.name.removesuffix(".pose.txt")
            shutil.copy(pose, folder)
            color = Image.open(pose.with_name(f"{stem}.color.jpg"))
            color.resize((320, 240), Image.Resampling.BOX).save(folder / f"{stem}.color.jpg", quality=92)
            depth = np.array(Image.open(pose.with_name(f"{stem}.depth.png")))[::2, ::2]
            Image.fromarray(depth.copy()).save(folder / f"{stem}.depth.png", optimize=True)
            matrix = f"{focal / 2:g} 0 160\n0 {focal / 2:g} 120\n0 0 1\n"
            (folder / "camera-intrinsics.txt").write_text(matrix)


def shrink_camvid(data: Path, out: Path) -> None:
    for split in ("train", "val", "test"):
        for path in images_in(data / "camvid" / split):
            if split == "test" and not path.name.startswith("Seq05V"):
                continue
            target = new_folder(out / "camvid" / split / path.parent.name) / path.name
            mask = path.parent.name == "labels"
            kind = Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS
            Image.open(path).resize((256, 192), kind).save(target, **({} if mask else {"quality": 88}))


def shrink_pacs(data: Path, out: Path) -> None:
    for folder in sorted(path for path in (data / "pacs").glob("*/*") if path.is_dir()):
        paths = list(images_in(folder))
        target = new_folder(out / "pacs" / folder.parent.name / folder.name)
        for path in (paths[index] for index in evenly_chosen(len(paths), PACS_KEPT)):
            Image.open(path).convert("RGB").save(target / f"{path.stem}.jpg", quality=92)


def shrink_cue_conflicts(data: Path, out: Path) -> None:
    for path in images_in(data / "cue-conflict"):
        target = new_folder(out / "cue-conflict" / path.parent.name)
        Image.open(path).convert("RGB").save(target / f"{path.stem}.jpg", quality=85)


def shrink_photographs(data: Path, out: Path) -> None:
    target = new_folder(out / "imagenet")
    for path in images_in(data / "imagenet-1-per-class"):
        image = Image.open(path).convert("RGB")
        scale = 168 / min(image.size)
        size = tuple(round(side * scale) for side in image.size)
        image.resize(size, Image.Resampling.LANCZOS).save(target / f"{path.stem}.jpg", quality=88)


def images_in(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder, sorted by path."""
    yield from sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def new_folder(path: Path) -> Path:
    """Return a folder, created if it is missing."""
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())

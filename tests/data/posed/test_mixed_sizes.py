"""Scenes of portrait, landscape and distorted frames: views stay registered, make pairs, and train in one batch."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import prior3d
from prior3d.contracts.dataset import DataSpec, table_of
from prior3d.data.posed.depth_maps import DepthMaps, at_one_size
from prior3d.data.sample.augmentation import AugmentOptions
from prior3d.data.sample.loading import DrawnSamples, batched
from prior3d.registry import Registry, in_force
from prior3d_plugins.datasets.posed import Posed

READER = """
from pathlib import Path

import numpy as np

from prior3d import BY_MARKER, Camera, Frame, Reader
from prior3d.data import read_array
from prior3d.data.posed import FileRecording, find_scenes, has_scene, pinhole


def is_scene(folder: Path) -> bool:
    return (folder / "frames.txt").is_file()


class Mixed(Reader):
    '''Lines of x, y, lens and size.

    Args:
        root: folder of scenes.
    '''

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._folders = find_scenes(self.root, is_scene, "frames.txt")

    @classmethod
    def recognizes(cls, folder):
        return BY_MARKER if has_scene(folder, is_scene) else 0

    def scenes(self):
        return list(self._folders)

    def open(self, scene):
        folder, frames, files = self._folders[scene], [], []
        for index, line in enumerate((folder / "frames.txt").read_text().splitlines()):
            x, y, k1, height, width = map(float, line.split())
            size, pose = (int(height), int(width)), np.eye(4)
            pose[:2, 3] = x, y
            distortion = (k1, 0.0, 0.0, 0.0) if k1 else ()
            model, matrix = "opencv" if k1 else "pinhole", pinhole(60, 60, width / 2, height / 2)
            camera = Camera(model, matrix, size, distortion, size)
            frames.append(Frame(str(index), camera, pose))
            files.append({"image": folder / f"{index}.png", "depth": folder / f"{index}.npy"})
        return FileRecording(frames, files, {"depth": read_array})
"""
SIZES = ((96, 128), (128, 96), (96, 128))
LENSES = (0.0, 0.0, -0.08)
FIELDS_READ = frozenset({"image", "depth", "intrinsics", "world_from_camera"})


def texture(x, y):
    """Colors of the wall z = 2 m."""
    return np.stack([127 + 100 * np.sin(2 * x + c) * np.cos(1.5 * y + 0.5 * x) for c in range(3)], -1)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "mixed_reader.py").write_text(READER)
    scene, lines = folder / "scans" / "wall", []
    scene.mkdir(parents=True)
    for index in range(9):
        (height, width), k1 = SIZES[index % 3], LENSES[index % 3]
        x, y = 0.25 * index, 0.1 * (index % 2)
        matrix = np.array([[60, 0, width / 2 - 0.5], [0, 60, height / 2 - 0.5], [0, 0, 1.0]])
        pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 1, 2).astype(np.float64)
        many = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-10)
        rays = cv2.undistortPoints(pixels, matrix, np.array([k1, 0, 0, 0.0]), criteria=many).reshape(height, width, 2)
        colors = texture(2 * rays[..., 0] + x, 2 * rays[..., 1] + y)
        Image.fromarray(np.rint(colors).clip(0, 255).astype(np.uint8)).save(scene / f"{index}.png")
        np.save(scene / f"{index}.npy", np.full((height, width), 2.0, np.float32))
        lines.append(f"{x} {y} {k1} {height} {width}")
    (scene / "frames.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def dataset(scans, tmp_path):
    with in_force(Registry([scans / "mixed_reader.py"])):
        yield Posed(DataSpec((48, 64), 2, "train", tmp_path / "cache", 0), root=scans / "scans")


@pytest.mark.parametrize("augment", [None, AugmentOptions(flip=0.0)])
def test_each_view_keeps_its_pixels_where_its_camera_says(dataset, augment):
    dataset.prepare(fields=FIELDS_READ)
    table = dataset.pairs(0)
    kinds = {(a % 3, b % 3) for a, b in zip(table.first.tolist(), table.second.tolist(), strict=True)}
    assert {(0, 1), (1, 2)} <= kinds  # landscape with portrait, portrait with lens
    clean = frozenset(FIELDS_READ - {"image"} | {"image_clean"})
    drawn = DrawnSamples(dataset, clean, augment, 0, skip_damaged=False)
    samples = [drawn[number] for number in range(12)]
    assert not any("error" in sample for sample in samples)
    batch = batched([{k: v for k, v in sample.items() if k != "damaged"} for sample in samples], 2, table_of(dataset))
    assert batch["image_clean"].shape == (12, 2, 3, 48, 64) and batch["depth"].shape == (12, 2, 48, 64)
    assert len(set((batch["frame"] % 3).flatten().tolist())) == 3
    column, row = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(48) + 0.5, indexing="xy")
    pixels = torch.stack([column, row, torch.ones(48, 64)]).reshape(3, -1)
    points = torch.linalg.inv(batch["intrinsics"]) @ pixels * batch["depth"].flatten(2)[:, :, None]
    world = points + batch["world_from_camera"][..., :3, 3:]
    expected = texture(world[:, :, 0].numpy(), world[:, :, 1].numpy())
    seen = batch["image_clean"].permute(0, 1, 3, 4, 2).reshape(12, 2, -1, 3).numpy().astype(float)
    seen *= 1 if seen.max() > 1 else 255
    assert np.abs(seen - expected).mean() < 1.5 and np.quantile(np.abs(seen - expected), 0.999) < 8


def test_portrait_and_landscape_train_in_one_batch(scans, tmp_path):
    recipe = {
        "plugins": [str(scans / "mixed_reader.py")],
        "backbone": {"name": "test_resnet", "decoder_stride": 4, "channels": 8, "pretrained": False},
        "data": {"name": "posed", "root": str(scans / "scans"), "size": [48, 64], "batch_size": 4, "views": 2,
                 "workers": 0, "cache": str(tmp_path / "cache")},
        "priors": {"view_invariance": {"points": 32}, "depth_regression": {}, "pixel_voxel": {}},
        "optim": {"warmup": 1},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "draw_every": 0},
    }  # fmt: skip
    run = prior3d.train(recipe, out=tmp_path / "runs", quiet=True)
    assert (run.folder / "backbone.safetensors").is_file()


def test_maps_come_to_the_size_of_most():
    maps, matrix = DepthMaps(), torch.tensor([[60.0, 0, 64], [0, 60, 48], [0, 0, 1]])
    for shape in ((96, 128), (96, 128), (48, 32)):
        maps.append(np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape))
    whole, same = at_one_size(maps, [matrix] * 3)
    assert whole.sizes == {(96, 128): 3} and torch.equal(same[0], matrix)
    assert torch.equal(whole[2][::2, ::4], maps[2]) and torch.equal(whole[2][1::2, 3::4], maps[2])
    assert torch.equal(same[2], torch.tensor([[240.0, 0, 256], [0, 120, 96], [0, 0, 1]]))
    alike = DepthMaps()
    alike.append(np.ones((2, 3), np.float32))
    assert at_one_size(alike, [matrix])[0] is alike

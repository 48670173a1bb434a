"""Scenes chosen by patterns and by list files, for any format; what is unknown in a list is one line."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.data.posed.selection import matching_scenes
from prior3d.errors import UserError
from prior3d.registry.schema import construct, validate_options
from prior3d_plugins.datasets.posed import Posed

SCENES = ("a/scene0000_00", "a/scene0000_01", "b/scene0001_00", "kitchen")


def listed(tmp_path: Path, text: str) -> set[str]:
    path = tmp_path / "list.txt"
    path.write_text(text)
    return matching_scenes(SCENES, path, "scenes")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kitchen\n", {"kitchen"}),
        ("\ufeffkitchen\r\n\r\n", {"kitchen"}),
        ("# official\nscene0000_01  # by its last part\n\nb/scene0001_00\n", {"a/scene0000_01", "b/scene0001_00"}),
        ("a/\nkitchen\nkitchen\n", {"a/scene0000_00", "a/scene0000_01", "kitchen"}),
        ("scene*\n*/scene0000_*", {"a/scene0000_00", "a/scene0000_01"}),
    ],
)
def test_a_file_names_one_scene_a_line(tmp_path, text, expected):
    if text.startswith("scene*"):
        with pytest.raises(UserError, match=r"^scenes: 1 of the 2 scenes in .*list\.txt do not exist: scene\*; there"):
            listed(tmp_path, text)
        text = text.partition("\n")[2]
    assert listed(tmp_path, text) == expected


def test_what_is_wrong_with_a_list_is_one_line(tmp_path):
    unknown = "kitchen\n" + "\n".join(f"scene{number:04d}_00" for number in range(2, 9))
    message = r"7 of the 8 scenes in .* do not exist: scene0002_00, scene0003_00, scene0004_00, \.\.\.; there are a/sc"
    with pytest.raises(UserError, match=f"^scenes: {message}"):
        listed(tmp_path, unknown)
    with pytest.raises(UserError, match=r"^scenes: no scene is named in .*list\.txt$"):
        listed(tmp_path, "# nothing\n")
    with pytest.raises(UserError, match=r"^test_scenes: no file .*none\.txt: set a file .* or a list: \[none\.txt\]$"):
        matching_scenes(SCENES, tmp_path / "none.txt", "test_scenes")
    with pytest.raises(UserError, match=r"^scenes: cannot read the list of scenes .*: Is a directory$"):
        matching_scenes(SCENES, tmp_path, "scenes")
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0 an image")
    with pytest.raises(UserError, match=r"^scenes: cannot read the list of scenes .*list\.txt: it is no text$"):
        matching_scenes(SCENES, tmp_path / "list.txt", "scenes")


def test_a_long_list_takes_no_time(tmp_path):
    scenes = [f"scene{number:04d}_00" for number in range(1513)]
    path = tmp_path / "train.txt"
    path.write_text("\n".join(scenes[:1201]))
    started = time.perf_counter()
    assert matching_scenes(scenes, path, "scenes") == set(scenes[:1201])
    assert time.perf_counter() - started < 0.5


def test_a_recipe_names_a_list_for_any_format(tmp_path, monkeypatch):
    for scene in SCENES:
        folder = tmp_path / "scans" / scene
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "frame-000000.color.png")
        Image.fromarray(np.ones((4, 6), np.uint16)).save(folder / "frame-000000.depth.png")
    (tmp_path / "train.txt").write_text("scene0000_00\nkitchen\n")
    (tmp_path / "val.txt").write_text("scene0001_00\n")
    monkeypatch.chdir(tmp_path)
    options = {"root": "scans", "scenes": "train.txt", "validation_scenes": "val.txt", "test_scenes": ["*01"]}
    assert validate_options(Posed, options, "data")["scenes"] == tmp_path / "train.txt"
    train, held_out = (
        construct(Posed, DataSpec((4, 6), 1, split, tmp_path / "cache"), key="data", options=options)
        for split in ("train", "validation")
    )
    assert train.splits == ("train", "validation", "test")
    assert (train.scenes, held_out.scenes) == (["a/scene0000_00", "kitchen"], ["b/scene0001_00"])
    with pytest.raises(UserError, match=r"^data\.scenes: no file .*/kitchen: .* or a list: \[kitchen\]$"):
        construct(Posed, train.spec, key="data", options={**options, "scenes": "kitchen"})

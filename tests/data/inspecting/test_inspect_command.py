"""The command `prior3d-data inspect` on a small recording: its lines, its page, its exit status."""

import numpy as np
import pytest
from PIL import Image

from prior3d.data_command import main

HEIGHT, WIDTH, FOCAL = 96, 128, 115.0


@pytest.fixture
def root(tmp_path):
    return record(tmp_path / "room")


def record(folder, written=lambda pose: pose):
    """A walk through a textured box, as 7-Scenes files."""
    folder.mkdir()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(x + 0.5 - WIDTH / 2) / FOCAL, (y + 0.5 - HEIGHT / 2) / FOCAL, np.ones((HEIGHT, WIDTH))], -1)
    for step in range(12):
        angle, pose = np.radians(1.5 * step - 12), np.eye(4)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[:3, 3] = [0.02 * step - 0.6, 0, 0.01 * step - 1]
        ray, center = rays @ pose[:3, :3].T, pose[:3, 3]
        z = np.maximum((np.array([-2.5, -1.2, -2]) - center) / ray, (np.array([2.5, 1.3, 2]) - center) / ray).min(-1)
        point = center + ray * z[..., None]
        image = 120 + 110 * np.sin(point * [7, 9, 8] + point[..., ::-1] * 3)
        name = str(folder / f"frame-{step:06d}")
        Image.fromarray(image.astype(np.uint8)).save(name + ".color.png")
        Image.fromarray((z * 1000).astype(np.uint16)).save(name + ".depth.png")
        np.savetxt(name + ".pose.txt", written(pose))
    camera = [[FOCAL, 0, WIDTH / 2 - 0.5], [0, FOCAL, HEIGHT / 2 - 0.5], [0, 0, 1]]
    np.savetxt(folder / "camera-intrinsics.txt", np.array(camera))
    return folder


def test_a_clean_recording_is_described(root, capsys):
    assert main(["inspect", str(root)]) == 0
    out = capsys.readouterr().out
    for text in ("format: sevenscenes", "12 frames, images 128x96, depth 128x96", "pairs by overlap", "nothing found"):
        assert text in out


def test_a_wrong_depth_scale_is_named_with_the_line_that_mends_it(root, capsys):
    assert main(["inspect", str(root), "data.reader.depth_scale=5000"]) == 1
    out = capsys.readouterr().out
    assert "finding: scale: depth x 5" in out
    assert "in the recipe: data.reader: {depth_scale: 1000}" in out


def test_inverted_poses_are_named(tmp_path, capsys):
    assert main(["inspect", str(record(tmp_path / "wrong", np.linalg.inv))]) == 1
    assert "finding: inverted poses" in capsys.readouterr().out


def test_the_page_holds_everything(root, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["inspect", str(root), "--html", str(page)]) == 0
    text = page.read_text()
    assert text.count("src='data:image/png;base64,") == 4
    assert "<script" not in text and "http" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "no folder nowhere"),
        (["inspect", ".", "--frames", "1"], "expected at least 4 frames, got 1"),
        (["inspect"], "the following arguments are required"),
        (["inspect", "{root}", "data.reader.depth=1"], "unknown key, did you mean 'depth_scale'?"),
        (["inspect", "{root}", "optim.lr=1"], "only keys of data can be set here"),
        (["inspect", "{root}", "--html", "no/folder/page.html"], "cannot write no/folder/page.html"),
    ],
)
def test_mistakes_are_one_line(root, capsys, arguments, message):
    assert main([text.format(root=root) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("prior3d-data: ") and error.count("\n") == 1

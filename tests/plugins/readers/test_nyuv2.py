"""The reader `nyuv2`: the .mat and the folder give the same frames; pairs are scenes of two."""

import numpy as np
import pytest
from PIL import Image
from reprojection import agreement

from prior3d.contracts.dataset import DataSpec
from prior3d.data.posed import PairOptions, make_reader, recognizing
from prior3d.errors import DamagedFile, UserError
from prior3d.testing import check_reader
from prior3d_plugins.datasets.posed import Posed
from prior3d_plugins.readers.nyuv2 import Nyuv2

SIZE = (24, 32)  # a twentieth: a border of 12 is one pixel here
ALL = frozenset({"image", "depth", "semantic"})


def second_from_first(x):
    return np.array([[1, 0, 0, x], [0, 1, 0, 0], [0, 0, 1, 0.0]])


def write_pairs(folder):
    relative = np.stack([second_from_first(0.5), second_from_first(np.nan)])
    np.savez(folder / "pairs.npz", first=[0, 1], second=[1, 2], second_from_first=relative.astype(np.float32))


@pytest.fixture
def unpacked(tmp_path):
    root = tmp_path / "nyu"
    for name in ("images", "depth", "labels40"):
        (root / name).mkdir(parents=True)
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "images" / f"{index:04d}.png")
        Image.fromarray(np.full(SIZE, 51 + index, np.uint8)).save(root / "depth" / f"{index:04d}.png")
        Image.fromarray(np.full(SIZE, 37 + index, np.uint8)).save(root / "labels40" / f"{index:04d}.png")
    write_pairs(root)
    return root


@pytest.fixture
def mat(tmp_path):
    h5py = pytest.importorskip("h5py")
    root = tmp_path / "mat"
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 255, (3, *SIZE, 3), dtype=np.uint8)
    depths = np.random.default_rng(1).uniform(1, 5, (3, *SIZE)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 5, (3, *SIZE)).astype(np.uint16)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:  # as MATLAB v7.3 writes
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"], file["rawDepths"] = depths.transpose(0, 2, 1), depths.transpose(0, 2, 1) * 0
        file["labels"] = labels.transpose(0, 2, 1)
    return root, images, depths, labels


def test_pairs_of_a_folder_are_scenes_of_two_frames(unpacked):
    reader = check_reader(Nyuv2, unpacked)
    assert next(iter(recognizing(unpacked))) == "nyuv2"
    assert reader.scenes() == ["00/0000-0001", "00/0001-0002"]
    recording = reader.open("00/0000-0001")
    assert [frame.world_from_camera[0, 3] for frame in recording.frames] == [0, -0.5]
    camera = recording.frames[0].camera
    assert camera.size == (22, 30)
    np.testing.assert_allclose(camera.intrinsics[:2, 2], [(325.582 + 0.5) / 20 - 1, (253.736 + 0.5) / 20 - 1])
    view = recording.read(1, ALL)
    np.testing.assert_array_equal(view["image"], np.asarray(Image.open(unpacked / "images/0001.png"))[1:-1, 1:-1])
    np.testing.assert_allclose(view["depth"], 52 * 10 / 255, rtol=1e-6)
    assert (view["semantic"] == 38).all()
    assert (reader.open("00/0001-0002").read(1, ALL)["semantic"] == 255).all()
    assert [frame.problem for frame in reader.open("00/0001-0002").frames] == [None, "pose not finite"]
    singles = Nyuv2(unpacked, pairs=False)
    assert singles.scenes() == ["00/0000", "00/0001", "00/0002"] and len(singles.open("00/0002").frames) == 1


def test_the_mat_is_turned_around_and_its_labels_mapped(mat):
    root, images, depths, labels = mat
    reader = Nyuv2(root, border=0)  # a .mat that is cut off is refused on opening: nothing is left to be decoded
    view = reader.open("00/0002").read(0, ALL)
    np.testing.assert_array_equal(view["image"], images[2])
    np.testing.assert_array_equal(view["depth"], depths[2])
    np.testing.assert_array_equal(view["semantic"], np.where(labels[2] == 0, 255, labels[2].astype(int) - 1))
    assert not Nyuv2(root, raw_depth=True).open("00/0000").read(0, ALL)["depth"].any()
    from scipy.io import savemat

    savemat(root / "classMapping40.mat", {"mapClass": np.array([[40, 3, 3, 1]])})
    mapped = np.array([255, 255, 2, 2, 0])  # 40 is class 39, which is ignored
    np.testing.assert_array_equal(Nyuv2(root, border=0).open("00/0002").read(0, ALL)["semantic"], mapped[labels[2]])


def test_damage_is_a_line_or_a_problem(unpacked, mat):
    (unpacked / "depth" / "0001.png").unlink()
    reader = Nyuv2(unpacked)
    assert [frame.problem for frame in reader.open("00/0000-0001").frames] == [None, "no depth file"]
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(unpacked / "labels40" / "0000.png")
    with pytest.raises(DamagedFile, match="5x5 pixels"):
        reader.open("00/0000-0001").read(0, ALL)
    content = (unpacked / "pairs.npz").read_bytes()
    (unpacked / "pairs.npz").write_bytes(content[:100])
    with pytest.raises(UserError, match=r"^root: expected first, second and second_from_first"):
        Nyuv2(unpacked)
    path = mat[0] / "nyu_depth_v2_labeled.mat"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"^root: cannot read .*nyu_depth_v2_labeled\.mat"):
        Nyuv2(mat[0])


def test_real_pairs_agree_far_better_than_without_motion(shared_data):
    reader = make_reader(shared_data / "nyuv2", "auto", {})
    assert len(reader.scenes()) == 403
    found = []
    for scene in reader.scenes()[::40]:
        recording = reader.open(scene)
        found.append([agreement(recording, 0, 1, moved) for moved in (True, False)])
    moved, still = np.nanmedian(found, axis=0)
    assert moved > 0.3 and moved > 4 * still, (moved, still)


def test_one_line_gives_pairs_of_the_real_frames(shared_data, tmp_path):
    pairs = PairOptions(min_overlap=0.15, max_distance=0.1)
    spec = DataSpec((57, 77), 2, "train", tmp_path / "cache")
    data = Posed(spec, root=shared_data / "nyuv2", scenes=("03",), pairs=pairs)
    for jobs in data.jobs(frozenset({"image", "depth", "intrinsics", "world_from_camera"})):
        assert jobs
    assert len(data) > 5

"""Normals of depth maps against planes and a sphere."""

import pytest
import torch

from prior3d.geometry import pixel_centers
from prior3d.geometry.normals import normals_from_depth

CAMERA = torch.tensor([[60.0, 0.0, 32.0], [0.0, 55.0, 24.0], [0.0, 0.0, 1.0]])
SIZE = (48, 64)


def rays(camera=CAMERA):
    pixels = torch.cat([pixel_centers(*SIZE), torch.ones(SIZE[0] * SIZE[1], 1)], 1).double()
    return (pixels @ camera.double().inverse().T).unflatten(0, SIZE)  # depth 1


def plane(normal, distance, camera=CAMERA):
    """Depth of the plane of points p with normal . p = -distance, 0 where it is not in front of the camera."""
    normal = torch.nn.functional.normalize(torch.tensor(normal).double(), dim=0)
    depth = -distance / (rays(camera) @ normal)
    return torch.where((depth > 0) & (depth < 100), depth, 0), normal


@pytest.mark.parametrize("normal", [(0.0, 0.0, -1.0), (0.5, -0.3, -1.0), (-1.0, 0.2, -0.4), (0.0, -1.0, -0.05)])
def test_exact_on_planes_up_to_the_border(normal):
    depth, expected = plane(normal, 1.5)
    found = normals_from_depth(depth, CAMERA.double(), edge=1.0)
    known = (found != 0).any(0)
    assert known.float().mean() > 0.4
    assert known[depth > 0].float().mean() > 0.97
    torch.testing.assert_close(found[:, known], expected[:, None].expand(-1, int(known.sum())), rtol=0, atol=1e-9)


def test_unit_length_toward_the_camera_and_batched():
    depth, _ = plane((0.5, -0.3, -1.0), 1.5)
    batch = torch.stack([depth, 2 * depth])[:, None].float()
    found = normals_from_depth(batch, CAMERA.expand(2, 1, 3, 3))
    assert found.shape == (2, 1, 3, *SIZE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=2), torch.ones(2, 1, *SIZE))
    assert (found * rays().movedim(-1, 0)).sum(2).max() < 0
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)


def test_mirrored_image_axes_do_not_turn_it():
    mirrored = CAMERA * torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    depth, expected = plane((0.5, -0.3, -1.0), 1.5, mirrored)
    found = normals_from_depth(depth, mirrored.double())
    torch.testing.assert_close(found[:, 20, 30], expected, rtol=0, atol=1e-9)


def test_a_sphere():
    center, radius = torch.tensor([0.1, -0.1, 3.0]).double(), 1.0
    directions = rays()
    along, length = directions @ center, (directions**2).sum(-1)
    root = along**2 - length * (center @ center - radius**2)
    depth = torch.where(root > 0, (along - root.clamp_min(0).sqrt()) / length, 0)
    expected = (directions * depth[..., None] - center).movedim(-1, 0)
    found = normals_from_depth(depth, CAMERA.double())
    inner = root > 0.5  # a chord is no tangent: it errs by up to half a pixel, most near the rim
    assert inner.sum() > 500
    assert (found * expected).sum(0)[inner].min() > 0.999
    assert (found[:, root <= 0] == 0).all()


def test_edges_do_not_round_off():
    front, expected_front = plane((0.3, 0.0, -1.0), 1.0)
    behind, expected_behind = plane((0.0, -0.4, -1.0), 2.5)
    nearer = torch.zeros(SIZE, dtype=torch.bool)
    nearer[10:30, 20:45] = True
    found = normals_from_depth(torch.where(nearer, front, behind), CAMERA.double())
    assert (found != 0).any(0).all()
    for mask, expected in ((nearer, expected_front), (~nearer, expected_behind)):
        torch.testing.assert_close(found[:, mask], expected[:, None].expand(-1, int(mask.sum())), rtol=0, atol=1e-9)


def test_unknown_depth_gives_no_normal_and_spoils_no_other():
    depth, expected = plane((0.5, -0.3, -1.0), 1.5)
    depth[10, 10], depth[20, 20], depth[30:33, 31] = 0, torch.nan, 0
    depth[40, 40] *= 2  # alone on a surface of its own
    found = normals_from_depth(depth, CAMERA.double())
    unknown = torch.zeros(SIZE, dtype=torch.bool)
    unknown[10, 10] = unknown[20, 20] = unknown[30:33, 31] = unknown[40, 40] = True
    assert torch.equal((found == 0).all(0), unknown)
    torch.testing.assert_close(found[:, ~unknown].T, expected.expand(int((~unknown).sum()), 3), rtol=0, atol=1e-9)


def test_refuses_an_edge_of_nothing():
    with pytest.raises(ValueError, match="edge"):
        normals_from_depth(torch.ones(4, 4), CAMERA, edge=0.0)

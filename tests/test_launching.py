"""Launches that skip Triton's inspection: only among calls that Triton would compile alike."""

from types import SimpleNamespace

import pytest
import torch

from prior3d import launching

triton = pytest.importorskip("triton")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class Kernel:
    """Stands in for a JITFunction: counts what Triton inspects, and notes what is launched directly."""

    device_caches = None
    arg_names = ("values", "size", "SCALE", "BLOCK")

    def __init__(self):
        self.params = [SimpleNamespace(name=name, is_constexpr=name.isupper()) for name in self.arg_names]
        self.inspected, self.direct, self.packed_metadata = [], [], None

    def fn(self):
        """Say what it does."""

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            self.inspected.append((grid, arguments, constants))
            return Compiled(self)

        return launch


class Compiled:
    packed_metadata = None

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *arguments: self.kernel.direct.append((grid, arguments))


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return Kernel()


def test_the_second_launch_of_a_class_goes_straight_to_the_compiled_kernel(kernel):
    fast = launching.relaunched(kernel)
    values, others = torch.zeros(64), torch.zeros(32)
    fast[(3,)](values, 48, SCALE=2, BLOCK=16, num_warps=4)
    fast[(5, 2)](others, 32, SCALE=2, BLOCK=16, num_warps=4)
    assert len(kernel.inspected) == 1
    ((grid, arguments),) = kernel.direct
    assert grid == (5, 2, 1) and arguments[0] is others and arguments[1:] == (32, 2, 16)
    assert fast.__doc__ == "Say what it does."


@pytest.mark.parametrize(
    ("other", "constants"),
    [
        ((torch.zeros(64, dtype=torch.float16), 48), {}),
        ((torch.zeros(65)[1:], 48), {}),  # an address that is no multiple of 16 bytes
        ((torch.zeros(64), 47), {}),
        ((torch.zeros(64), 1), {}),
        ((torch.zeros(64), 2**31), {}),
        ((torch.zeros(64), -16), {}),
        ((torch.zeros(64), 48.0), {}),
        ((torch.zeros(64), True), {}),
        ((None, 48), {}),
        ((torch.zeros(64), 48), {"SCALE": 4}),
        ((torch.zeros(64), 48), {"BLOCK": 32}),
        ((torch.zeros(64), 48), {"num_warps": 8}),
    ],
)
def test_what_triton_may_compile_differently_is_inspected(kernel, other, constants):
    fast = launching.relaunched(kernel)
    usual = {"SCALE": 2, "BLOCK": 16, "num_warps": 4}
    fast[(1,)](torch.zeros(64), 48, **usual)
    fast[(1,)](*other, **usual | constants)
    assert len(kernel.inspected) == 2 and not kernel.direct


def test_another_device_is_inspected(kernel, monkeypatch):
    fast = launching.relaunched(kernel)
    for device in (0, 1):
        monkeypatch.setattr(torch.cuda, "current_device", lambda device=device: device)
        fast[(1,)](torch.zeros(64), 48, SCALE=2, BLOCK=16)
    assert len(kernel.inspected) == 2 and not kernel.direct


def test_numbers_by_name_are_never_kept(kernel):
    fast = launching.relaunched(kernel)
    for _ in range(2):
        fast[(1,)](torch.zeros(64), size=48, SCALE=2, BLOCK=16)
    assert len(kernel.inspected) == 2 and not kernel.direct


def test_an_old_triton_launches_everything_itself(kernel, monkeypatch):
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    fast = launching.relaunched(kernel)
    for _ in range(2):
        fast[(1,)](torch.zeros(64), 48, SCALE=2, BLOCK=16)
    assert len(kernel.inspected) == 2 and not kernel.direct


@pytest.mark.gpu
@needs_gpu
def test_sums_are_the_same_as_tritons_own_launches():
    from prior3d_plugins.engines.sparse_triton import kernels

    fast = kernels.add_few
    for width in (1, 15, 16, 48, 47, 64, 1, 16, 33, 1024, 5000):
        for shift in (0, 1):
            parts = torch.rand(shift + 2 * width, device="cuda")[shift:].view(2, width)
            expected, found = torch.empty(2, width, device="cuda")
            grid = (launching.blocks(width, 1024),)
            fast._kernel[grid](parts, expected, width, PARTS=2, BLOCK=1024)
            fast[grid](parts, found, width, PARTS=2, BLOCK=1024)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            torch.testing.assert_close(found, parts.sum(0))

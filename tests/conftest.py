"""Fixtures shared by all tests: where the optional real data lies, and quiet defaults for two CPU cores."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(1)  # two threads spin-wait on a busy machine: a 2 s test took 136 s


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the checkout; the test is skipped, visibly, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not present: {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def count_waits(capfd: pytest.CaptureFixture) -> Callable[[Callable[[], object]], tuple[int, int]]:
    """Count the waits of the host for the GPU in a call: those of our code, and those of libraries' own C++ code.

    PyTorch warns of each in Python where Python called it, and prints where a library did.
    """

    def count(call: Callable[[], object]) -> tuple[int, int]:
        torch.cuda.synchronize()
        capfd.readouterr()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
        return len(found), capfd.readouterr().err.count("called a synchronizing CUDA operation")

    return count


LONGEST = (
    "test_stranger",
    "test_api",
    "test_distributed",
    "test_joint",
    "test_base_install",
    "test_readme",
    "test_interruption",
)
"""Files that take longest; they begin first, so that in the end no process is left alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; the order within a file stays."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)

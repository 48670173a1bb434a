"""Which errors say that memory ran out."""

import pytest
import torch

from prior3d.backbone.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("no words"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("Storage size calculation overflowed with sizes=[9]"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_recognized_on_every_device(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("memory"), KeyError("x")])
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def test_what_torch_raises_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)

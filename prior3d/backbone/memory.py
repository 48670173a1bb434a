"""Conversion of out-of-memory errors to errors that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prior3d.errors import UserError

_SAYINGS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Storage size calculation overflowed",
)


@contextmanager
def refuse_out_of_memory(message: str, key: str | None = None) -> Iterator[None]:
    """Raise UserError if the block runs out of memory.

    Args:
        message: what needed the memory and what to do.
        key: the option that the error is about.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: {message}", key) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that a CPU or a GPU has not enough memory.

    >>> is_out_of_memory(MemoryError())
    True
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(saying in str(error) for saying in _SAYINGS)

"""Out of memory, as an error that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

from prior3d.errors import UserError

_SAYINGS = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")


@contextmanager
def refuse_out_of_memory(message: str, key: str | None = None) -> Iterator[None]:
    """Raise UserError where the block asks for more memory than there is.

    Args:
        message: what needed it and what to do.
        key: the option that it is about.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: {message}", key) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on a CPU or a GPU.

    >>> is_out_of_memory(MemoryError())
    True
    """
    return isinstance(error, MemoryError) or any(saying in str(error) for saying in _SAYINGS)

"""The part of every `check_<kind>` that looks at the class alone."""

from prior3d.errors import refusal_of
from prior3d.registry.members import refuse_unusable, unknown_names


def check_members(cls: type) -> None:
    """Assert that a plugin's class defines what its contract calls, with its arguments, and misspells no name of it.

    Raises:
        AssertionError: names the member.
    """
    refused = refusal_of(lambda: refuse_unusable(cls))
    assert refused is None, str(refused)
    for name, meant in unknown_names(cls):
        raise AssertionError(
            f"{cls.__name__} has {name}, which prior3d does not call: if {meant} is meant, rename it; "
            f"if not, call it _{name}"
        )

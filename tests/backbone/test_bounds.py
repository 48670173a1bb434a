"""Numbers of a recipe have bounds: a typing error is one line, and cannot take all memory."""

import pytest

from prior3d.errors import UserError
from prior3d.recipe.reading import read_section
from prior3d.recipe.sections import BackboneSection, DataSection, TrainerSection

BACKBONE = {"name": "resnet18", "channels": 64}
DATA = {"name": "synthetic_rooms", "size": [96, 128], "batch_size": 2}


@pytest.mark.parametrize(
    ("section", "content", "key", "most"),
    [
        (BackboneSection, BACKBONE | {"channels": 10**6}, "channels", 4096),
        (BackboneSection, BACKBONE | {"decoder_stride": 10**6}, "decoder_stride", 1024),
        (DataSection, DATA | {"size": [96, 10**15]}, "size[1]", 8192),
        (DataSection, DATA | {"batch_size": 10**9}, "batch_size", 65536),
        (DataSection, DATA | {"views": 10**6}, "views", 1024),
        (DataSection, DATA | {"workers": 10**6}, "workers", 1024),
        (TrainerSection, {"max_steps": 10**15}, "max_steps", 10**9),
    ],
)
def test_what_is_above_a_bound_is_refused_with_it(section, content, key, most):
    with pytest.raises(UserError) as caught:
        read_section(section, content, "here")
    assert caught.value.key == f"here.{key}"
    assert f"at most {most}" in caught.value.message, caught.value.message
    name = key.partition("[")[0]
    content = content | {name: [most, most] if "[" in key else most}
    made = read_section(section, content, "here")
    assert getattr(made, name) in (most, (most, most))

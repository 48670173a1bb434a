"""What every prior must keep to, for the tests of whoever writes one, and examples to try it on; no tests of our own.

from prior3d.testing import check_prior

def test_my_prior():
    check_prior(MyPrior)
"""

from prior3d.testing.contract import check_prior, evaluate
from prior3d.testing.examples import (
    SIZE,
    example_backbone,
    example_batch,
    example_features,
    example_scenes,
    example_teacher,
)
from prior3d.testing.exporters import check_exporter

__all__ = [
    "SIZE",
    "check_exporter",
    "check_prior",
    "evaluate",
    "example_backbone",
    "example_batch",
    "example_features",
    "example_scenes",
    "example_teacher",
]

"""Contract checks for the tests of plugin authors, and small examples to try plugins on.

from prior3d.testing import check_dataset, check_prior

def test_my_prior():
    check_prior(MyPrior)

def test_my_dataset(tmp_path):
    check_dataset(MyDataset, {"root": str(tmp_path)})
"""

from prior3d.testing.dataset import check_dataset
from prior3d.testing.engine import check_engine
from prior3d.testing.examples import (
    SIZE,
    example_backbone,
    example_batch,
    example_features,
    example_scenes,
    example_teacher,
)
from prior3d.testing.exporter import check_exporter
from prior3d.testing.prior import check_prior, evaluate
from prior3d.testing.probe import check_probe
from prior3d.testing.reader import check_reader
from prior3d.testing.runner import check_runner
from prior3d.testing.view import check_view

__all__ = [
    "SIZE",
    "check_dataset",
    "check_engine",
    "check_exporter",
    "check_prior",
    "check_probe",
    "check_reader",
    "check_runner",
    "check_view",
    "evaluate",
    "example_backbone",
    "example_batch",
    "example_features",
    "example_scenes",
    "example_teacher",
]

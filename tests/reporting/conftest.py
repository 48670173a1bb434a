"""A probe whose scores are made by hand."""

from types import MappingProxyType

import pytest
import torch

from prior3d.contracts.dataset import Dataset, DataSpec
from prior3d.contracts.probe import Probe
from prior3d.contracts.scores import Scores
from prior3d.probes.results import Results
from prior3d.probes.tasks import ProbeTask


class Hits(Probe):
    """How often something is hit.

    It is hit or it is not.

    Args:
        none: there is nothing to choose.
    """

    lower_is_better = frozenset({"missed"})
    meanings = MappingProxyType({"hit": "share of tries that hit"})
    bounds = MappingProxyType({"hit": (0, 1), "mis": (0, 1)})

    def measure(self, model, data, seed=0):
        raise AssertionError("nothing is measured here")

    def summarize(self, total):
        share = float(total["hits"] / total["tries"])
        return {"hit": share, "missed": 1 - share}


class Rooms(Dataset):
    splits = ("train", "validation", "test")

    def __init__(self, spec, scenes):
        super().__init__(spec)
        self.scenes = [f"room {number}" for number in range(scenes)]

    def __len__(self):
        return 5 * len(self.scenes)

    def frame_count(self, scene):
        return 5

    def fingerprint(self, frames=None):
        return ""

    def sample(self, draw, fields, generator):
        raise AssertionError("nothing is read here")


@pytest.fixture
def make_task(tmp_path):
    def make(scenes=12, seeds=1, split="test"):
        spec = DataSpec(size=(48, 64), views=1, split=split, cache=tmp_path)
        return ProbeTask("hits", Hits(), {"held_out": Rooms(spec, scenes)}, seeds, None)

    return make


@pytest.fixture
def make_results():
    """Columns of hits out of 10 tries in each scene, one list per seed; controls have one."""

    def make(controls=(), **columns):
        results = Results()
        for column, by_seed in columns.items():
            scores = [
                Scores(
                    tuple(f"room {index}" for index in range(len(hits))),
                    {
                        "hits": torch.tensor(hits, dtype=torch.float64),
                        "tries": torch.full((len(hits),), 10.0).double(),
                    },
                )
                for hits in by_seed
            ]
            results.put("hits", column.replace("_", " "), scores, control=column in controls)
        return results

    return make

"""The device that training, probes, teachers and evaluations choose."""

import pytest
import torch

from prior3d.errors import UserError
from prior3d.evaluation.run import Arguments, device_of
from prior3d.pretraining.machine import choose_device


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_gpu_is_taken_if_there_is_one_unless_a_cpu_is_requested(monkeypatch, has_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    taken = {accelerator: choose_device(accelerator) for accelerator in ("auto", "cpu", "gpu")}
    gpu = "cuda" if has_gpu else "cpu"
    assert taken == {"auto": gpu, "cpu": "cpu", "gpu": gpu}
    assert device_of(Arguments("resnet18", device="auto")) == gpu


def test_an_evaluation_does_not_replace_a_gpu_that_is_requested(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device: there is no GPU that torch can use$"):
        device_of(Arguments("resnet18", device="cuda"))
    assert device_of(Arguments("resnet18", device="cpu")) == "cpu"

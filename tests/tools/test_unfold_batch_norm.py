"""The command that unfolds BatchNorm statistics, on a model whose statistics were folded by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from prior3d.backbone.weights import read_description

TOOL = Path(__file__).resolve().parents[2] / "tools" / "unfold_batch_norm.py"
MODEL = "mobilenetv2_035"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("unfold_batch_norm_command", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    draws = np.random.default_rng(0)
    for number in range(24):
        pixels = draws.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def folded(file):
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=10)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0.2, 0.2)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, file)
    return model.eval()


def test_the_unfolded_model_computes_what_the_folded_one_did(main, photographs, tmp_path, capsys):
    before = folded(tmp_path / "folded.safetensors")
    out = tmp_path / "weights" / "unfolded.safetensors"  # in a folder that is not there yet
    assert main([str(tmp_path / "folded.safetensors"), str(photographs), "--model", MODEL, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "52 layers unfolded" in said and str(out) in said
    after = timm.create_model(MODEL, num_classes=10)
    after.load_state_dict(load_file(out))  # the classifier is there, too
    assert after.bn1.running_mean.abs().max() > 0.01
    assert read_description(out)["model"] == MODEL  # prior3d-eval needs no more than the file
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = before(images), after.eval()(images)
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)
    status = main([str(out), str(photographs), "--model", MODEL, "--out", str(tmp_path / "again.safetensors")])
    assert status == 2 and "no layer whose statistics are folded" in capsys.readouterr().err
    assert not (tmp_path / "again.safetensors").exists()


def test_what_does_not_fit_is_one_line(main, photographs, tmp_path, capsys):
    folded(tmp_path / "folded.safetensors")
    arguments = [str(tmp_path / "folded.safetensors"), str(photographs), "--out", str(tmp_path / "out.safetensors")]
    assert main([*arguments, "--model", "resnet18"]) == 2
    assert "does not fit" in capsys.readouterr().err
    assert main([arguments[0], str(tmp_path / "none"), *arguments[2:], "--model", MODEL]) == 2
    assert "no folder" in capsys.readouterr().err

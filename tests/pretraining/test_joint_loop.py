"""`prior3d.Joint`: priors in a training loop of one's own."""

import io

import pytest
import timm
import torch

import prior3d
from prior3d.contracts.prior import Prior
from prior3d.errors import UserError

SIZE = (64, 64)


def batch(seed=0):
    stream = torch.Generator().manual_seed(seed)
    intrinsics = torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]).expand(2, 2, 3, 3)
    poses = torch.eye(4).repeat(2, 2, 1, 1)
    poses[:, 1, 0, 3] = 0.1
    image = torch.rand(2, 2, 3, *SIZE, generator=stream)
    depth = torch.full((2, 2, *SIZE), 2.0)
    return {"image": image, "depth": depth, "intrinsics": intrinsics, "world_from_camera": poses}


def test_a_plain_loop_trains_backbone_and_heads():
    joint = prior3d.Joint(
        "test_resnet",
        {"view_invariance": {"points": 32}, "metric": {"prior": "depth_regression", "weight": 0.5}},
        size=SIZE,
        decoder_stride=4,
        channels=8,
    )
    optimizer = torch.optim.AdamW(joint.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss, scalars = joint(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        total = scalars["loss/view_invariance"] + 0.5 * scalars["loss/metric"]
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    assert joint.steps == 8
    joint.eval()
    joint(batch(), step=0)
    assert joint.steps == 8  # validation does not turn the loop back


def test_the_backbone_runs_once_for_all_priors(monkeypatch):
    calls = []
    forward = prior3d.Backbone.forward
    monkeypatch.setattr(
        prior3d.Backbone, "forward", lambda self, *a, **k: calls.append(len(a[0])) or forward(self, *a, **k)
    )
    joint = prior3d.Joint("test_resnet", ["view_invariance", "depth_regression"], size=SIZE, decoder_stride=4)
    calls.clear()
    joint(batch())
    assert calls == [4]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_model_of_timm_stays_the_users_own(name):
    model = timm.create_model(name, num_classes=5, **({"dynamic_img_size": True} if "vit" in name else {}))
    joint = prior3d.Joint(model, ["depth_regression"], size=SIZE, decoder_stride=8)
    first = next(parameter for parameter in model.parameters() if parameter.ndim > 1)
    before = first.detach().clone()
    loss, _ = joint(batch())
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(before, first)
    assert joint.backbone.encoder.model is model


def test_draws_follow_from_the_seed_and_the_step():
    def losses(seed):
        joint = prior3d.Joint(
            "test_resnet", {"view_invariance": {"points": 16}}, size=SIZE, decoder_stride=4, seed=seed
        )
        return [joint(batch())[0].item() for _ in range(2)]

    torch.manual_seed(1)
    first = losses(5)
    torch.manual_seed(2)
    assert losses(5) == first
    assert losses(6) != first


class Distance(Prior):
    """Pull features to those of a teacher."""

    encodes = ("image",)

    def __init__(self, backbone, teacher="ema"):
        super().__init__(backbone)
        self.reads = frozenset({"dense", teacher})
        self.teacher = teacher

    def forward(self, batch, features):
        feature = features["image"]
        return (feature.dense - getattr(feature, self.teacher).dense).square().mean(), {}


def test_teachers_are_the_first_weights_and_the_moving_average():
    backbone = prior3d.load("test_resnet", overrides={"backbone.pretrained": False}, size=SIZE)
    kinds = {name: Distance(backbone.spec, name) for name in ("ema", "reference")}
    joint = prior3d.Joint(backbone, kinds, ema=0.5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05)
    joint.eval()
    _, first = joint(batch(), step=0)
    joint.update_average()
    _, second = joint(batch(), step=0)
    assert 0 < second["loss/ema"] < first["loss/ema"]
    assert second["loss/reference"] == first["loss/reference"] > 0


def test_a_loop_that_loads_a_saved_state_goes_on_exactly():
    def make():
        backbone = prior3d.load("test_resnet", overrides={"backbone.pretrained": False}, size=SIZE)
        priors = {name: Distance(backbone.spec, name) for name in ("ema", "reference")}
        joint = prior3d.Joint(backbone, {**priors, "view_invariance": {"points": 16}}, ema=0.9)
        return joint, torch.optim.AdamW(joint.parameters(), lr=1e-2)

    def run(joint, optimizer, steps):
        losses = []
        for _ in range(steps):
            loss, scalars = joint(batch())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            joint.update_average()
            losses.append({name: value.item() for name, value in scalars.items()} | {"loss": loss.item()})
        return losses

    joint, optimizer = make()
    run(joint, optimizer, 3)
    file = io.BytesIO()
    torch.save([joint.state_dict(), optimizer.state_dict()], file)
    expected = run(joint, optimizer, 3)
    file.seek(0)
    again, other_optimizer = make()
    with torch.no_grad():
        for model in (again.backbone, *again._average, *again._reference):
            for parameter in model.parameters():
                parameter.add_(1)
    for part, state in zip((again, other_optimizer), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert again.steps == 3
    assert run(again, other_optimizer, 3) == expected
    without = prior3d.Joint("test_resnet", ["view_invariance"], size=SIZE)
    with pytest.raises(ValueError, match=r"expected a state with the teachers \[\], got \['average', 'reference'\]"):
        without.set_extra_state(joint.get_extra_state())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"priors": ["depth_regresion"]}, "priors.depth_regresion: unknown prior 'depth_regresion', did you mean"),
        ({"priors": {"depth_regression": {"widht": 1}}}, "priors.depth_regression.widht: unknown key"),
        ({"priors": ["gaussian_distillation"]}, "priors.gaussian_distillation: prepares whole scenes before training"),
        ({"priors": []}, "needs at least one prior"),
        ({"priors": ["depth_regression"], "size": None}, "give size=(height, width)"),
        ({"backbone": torch.nn.Linear(1, 1), "priors": ["depth_regression"]}, "or a model of timm, got Linear"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(arguments, words):
    with pytest.raises(prior3d.UserError) as refused:
        prior3d.Joint(**{"backbone": "test_resnet", "size": SIZE, "decoder_stride": 4, **arguments})
    assert words in str(refused.value)


def test_a_batch_that_lacks_a_field_is_refused():
    joint = prior3d.Joint("test_resnet", ["depth_regression"], size=SIZE)
    with pytest.raises(ValueError, match="depth_regression needs the field depth"):
        joint({"image": batch()["image"]})
    with pytest.raises(ValueError, match=r"expected image as \[B, V, 3, H, W\]"):
        joint(batch() | {"image": torch.rand(2, 3, *SIZE)})


def test_a_prior_without_the_constructor_of_its_base_class_is_one_line(tmp_path):
    text = "from prior3d import Prior\nclass Own(Prior):\n    def __init__(self, backbone): ...\n"
    (tmp_path / "own.py").write_text(f"{text}    def forward(self, batch, features): ...\n")
    backbone = prior3d.load("test_resnet", overrides={"backbone.pretrained": False}, size=SIZE)
    with pytest.raises(UserError) as refused:
        prior3d.Joint(backbone, ["own"], plugins=[str(tmp_path / "own.py")])
    assert str(refused.value) == "priors.own: its constructor does not call super().__init__(backbone)"

"""Replayed steps compute what plain steps compute. On a CPU, a stand-in runs again what a GPU would replay."""

import contextlib
import warnings
from copy import deepcopy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from prior3d.backbone import Backbone
from prior3d.contracts.prior import Prior
from prior3d.pretraining import graphs as graphs_module
from prior3d.pretraining.graphs import WARM_UP, Graphs
from prior3d.pretraining.health import compare_gradients
from prior3d.pretraining.objective import JointObjective, Term, encode
from prior3d.pretraining.recording import GraphPair, RecordingBroken, copy_all
from prior3d.pretraining.task import Average, PretrainingTask, update_average
from prior3d.randomness import reseed
from prior3d.testing.examples import SIZE, example_batch
from prior3d_plugins.priors.augmentation_invariance import AugmentationInvariance
from prior3d_plugins.priors.depth_regression import DepthRegression
from prior3d_plugins.priors.triplane import Triplane
from prior3d_plugins.priors.view_invariance import ViewInvariance

STEPS = 10

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

CAPTURABLE = {
    "view_invariance": (ViewInvariance, {"points": 32}),
    "augmentation_invariance": (AugmentationInvariance, {"points": 32}),
    "depth_regression": (DepthRegression, {}),
    "triplane": (Triplane, {"width": 16, "blocks": 1, "rays": 32, "samples": 8, "plane_size": 4, "images": 2}),
    "dpt": (Triplane, {"decoder": "dpt", "width": 16, "rays": 32, "distill_weight": 0.0}),
}


class RunAgain(GraphPair):
    """What a recording does, by running the function again: same memory, same state, no CUDA."""

    made = 0

    def _record(self, function, wanted):
        RunAgain.made += 1
        trains = torch.is_grad_enabled()
        self._try(function, wanted)  # leaves traces in buffers and generators, which have to be undone
        self._sources[len(self._moving) :] = self._parameters  # which the modules read again when this is replayed
        kept = [torch.empty_like(source) for source in self._sources]
        fresh = []

        def forward():
            with torch.set_grad_enabled(trains):
                fresh[:] = function(self._inputs)
            with torch.no_grad():
                copy_all([(own, new.detach()) for own, new in zip(self.outputs, fresh, strict=True)])

        def backward():
            found = self._differentiate(fresh)
            self._gradients = [None if new is None else own for own, new in zip(kept, found, strict=True)]
            copy_all([(own, new) for own, new in zip(kept, found, strict=True) if new is not None])

        return forward, backward


class Setting:
    """A small backbone with two teachers and the chosen priors, trained on one batch."""

    def __init__(self, labels, device="cpu", encoder="resnet10t", decoder_stride=4):
        torch.manual_seed(0)
        self.backbone = Backbone(encoder, SIZE, decoder_stride=decoder_stride, channels=16).to(device)
        made = {label: CAPTURABLE[label][0](self.backbone.spec, **CAPTURABLE[label][1]) for label in labels}
        self.objective = JointObjective(made, {label: Term(1.0, warmup=4) for label in labels}).to(device)
        self.reference, self.ema = (deepcopy(self.backbone).requires_grad_(False).eval() for _ in range(2))
        self.batch = {name: value.to(device) for name, value in example_batch().items()}
        self.device = device

    def train(self, graphs=None, steps=STEPS, accumulate=1, bf16=False, whole=(), before=lambda step: None):
        """Return the losses, scalars and weights of some steps."""
        self.backbone.train()
        trained = [*self.backbone.parameters(), *self.objective.parameters()]
        optimizer = torch.optim.SGD([one for one in trained if one.requires_grad], lr=0.05)
        history = []
        for step in range(steps):
            before(step)
            for micro in range(accumulate):
                losses, maps = self._losses(graphs, step, micro, bf16, step in whole)
                compared = compare_gradients(losses, maps.encoder, self.objective) if step in whole else {}
                if micro == 0:
                    optimizer.zero_grad()
                losses.total.backward()
                history.append({**losses.by_label, **losses.scalars, **compared})
            optimizer.step()
            update_average(self.ema, self.backbone, 0.9)
        found = [{name: value.detach().clone() for name, value in one.items()} for one in history]
        return found, {**self.backbone.state_dict(), **self.objective.state_dict()}

    def _losses(self, graphs, step, micro, bf16, whole):
        seed = partial(reseed, "step", step, micro)
        seed("backbone")
        teachers = self.objective.teachers(reference=self.reference, ema=self.ema)
        backbone, evaluate = self.backbone, {}
        if graphs is not None:
            graphs.heads = not whole
            backbone = graphs.backbone("backbone", backbone, trains=True)
            for name, teacher in teachers.items():
                replayed = graphs.backbone(name, teacher.backbone, trains=False)
                teachers[name] = type(teacher)(replayed, teacher.fields, teacher.reads)
            evaluate = {"evaluate": graphs.prior}
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
            found = encode(backbone, self.batch, self.objective.encodes, self.objective.reads, teachers)
            return self.objective(self.batch, found.features, step, seed, **evaluate), found.maps


def recorded(graphs):
    return {name for name, part in graphs._parts.items() if part.recorded is not None}


def agree(plain, replayed, **limits):
    (ours, our_weights), (theirs, their_weights) = plain, replayed
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, check_dtype=False, **limits)
    torch.testing.assert_close(our_weights, their_weights, **limits)


@pytest.mark.parametrize("label", CAPTURABLE)
def test_a_step_that_is_run_from_fixed_memory_is_the_plain_step(label):
    graphs = Graphs(record=RunAgain)
    replayed = Setting([label]).train(graphs)
    assert {"backbone, encoder", f"priors.{label}"} <= recorded(graphs)
    assert ("reference, encoder" in recorded(graphs)) == (label == "triplane")
    agree(Setting([label]).train(), replayed, rtol=0, atol=0)


@pytest.mark.parametrize("encoder", ["resnet10t", "test_vit"])
@pytest.mark.parametrize("decoder_stride", [4, None])
def test_priors_share_the_replayed_pass(encoder, decoder_stride):
    labels = ["view_invariance", "augmentation_invariance", "depth_regression", "triplane"]
    if decoder_stride is None:
        labels.remove("depth_regression")  # its slopes need more cells
    make = partial(Setting, labels, encoder=encoder, decoder_stride=decoder_stride)
    replayed = make().train(Graphs(record=RunAgain))
    agree(make().train(), replayed, rtol=1e-5, atol=1e-6)


def test_gradients_of_several_batches_are_summed():
    labels = ["view_invariance", "triplane"]
    replayed = Setting(labels).train(Graphs(owns_gradients=True, record=RunAgain), accumulate=3)
    agree(Setting(labels).train(accumulate=3), replayed, rtol=1e-5, atol=1e-6)


def test_a_step_that_compares_gradients_runs_decoder_and_priors_plainly():
    labels = ["view_invariance", "depth_regression"]
    replayed = Setting(labels).train(Graphs(record=RunAgain), whole=(0, 7))
    agree(Setting(labels).train(whole=(0, 7)), replayed, rtol=1e-5, atol=1e-6)


def test_other_shapes_and_evaluation_run_plainly():
    setting = Setting(["view_invariance"])
    graphs = Graphs(record=RunAgain)
    setting.train(graphs)
    run = graphs.backbone("backbone", setting.backbone, trains=True)
    images = torch.rand(1, 3, *SIZE)
    setting.backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(run(images, {"dense"}).dense, setting.backbone(images, {"dense"}).dense)
    setting.backbone.train()
    assert run(images.repeat(3, 1, 1, 1), {"dense"}).dense.shape[0] == 3


def test_nothing_is_recorded_before_the_warm_up_and_once_after_it():
    setting, before = Setting(["depth_regression"]), RunAgain.made
    graphs = Graphs(record=RunAgain)
    setting.train(graphs, steps=WARM_UP)
    assert RunAgain.made == before
    setting.train(graphs, steps=1)
    assert recorded(graphs) == {"backbone, encoder", "backbone, decoder"}
    setting.train(graphs, steps=4)
    assert RunAgain.made == before + 3
    ours, theirs = (graphs._parts[name].recorded for name in ("backbone, decoder", "priors.depth_regression"))
    assert theirs._inputs[-1].data_ptr() == ours.outputs[0].data_ptr()  # read where it lies


class Waits(Prior):
    """A prior that says it is capturable, and is not."""

    capturable = True

    def forward(self, batch, features):
        return features["image"].dense.square().mean(), {}


def test_gradients_share_no_memory():
    first, second, images = (torch.ones(2, 3, requires_grad=True) for _ in range(3))
    module = torch.nn.Module()
    module.first, module.second = torch.nn.Parameter(first), torch.nn.Parameter(second)
    run = RunAgain(lambda tensors: [tensors[0] + module.first + module.second], [images], [module], {0})
    (total,) = run([images])
    total.sum().backward()
    gradients = [images.grad, module.first.grad, module.second.grad]
    gradients[0].mul_(2)
    assert len({one.data_ptr() for one in gradients}) == 3
    assert [one.sum().item() for one in gradients] == [12, 6, 6]


def test_what_cannot_be_recorded_runs_plainly_after_one_warning(monkeypatch, caplog):
    monkeypatch.setitem(CAPTURABLE, "waits", (Waits, {}))

    def fail(function, inputs, modules, wanted, *more):
        if isinstance(modules[0], Waits):
            raise RuntimeError("called a synchronizing CUDA operation\nand more")
        return RunAgain(function, inputs, modules, wanted, *more)

    replayed = Setting(["waits"]).train(Graphs(record=fail))
    (line,) = [record.getMessage() for record in caplog.records if record.name == graphs_module.__name__]
    assert line.startswith("priors.waits is not replayed") and line.endswith("synchronizing CUDA operation")
    agree(Setting(["waits"]).train(), replayed, rtol=0, atol=0)


def test_after_a_recording_that_broke_off_nothing_is_replayed(caplog):
    def fail(function, inputs, modules, wanted, *more):
        if isinstance(modules[0], Triplane):
            raise RecordingBroken("operation failed due to a previous error during capture")
        return RunAgain(function, inputs, modules, wanted, *more)

    graphs, labels = Graphs(record=fail), ["depth_regression", "triplane"]
    replayed = Setting(labels).train(graphs)
    (line,) = [record.getMessage() for record in caplog.records if record.name == graphs_module.__name__]
    assert line.startswith("no CUDA graph is replayed from now on") and "priors.triplane failed" in line
    assert not recorded(graphs)
    agree(Setting(labels).train(), replayed, rtol=0, atol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_a_recording_reads_parameters_through_leaves_that_no_earlier_step_used(fails):
    class Looks(GraphPair):
        def _record(self, function, wanted):
            seen[:] = self._sources[1:]
            self._try(function, wanted)
            if fails:
                raise RuntimeError("out of memory")
            return (lambda: None), (lambda: None)

    seen, inner = [], torch.nn.Linear(3, 3)
    net = torch.nn.Sequential(inner, torch.nn.ReLU(), inner)  # one weight in two places
    given, owned = torch.rand(2, 3, requires_grad=True), list(net.parameters())
    held = net(given)  # a graph of an earlier step, which someone keeps
    with pytest.raises(RuntimeError, match="memory") if fails else contextlib.nullcontext():
        made = Looks(lambda inputs: [net(inputs[0])], [given], [net], {0})
        torch.testing.assert_close(made.outputs[0], held)
    assert [one.data_ptr() for one in seen] == [one.data_ptr() for one in owned]
    assert all(leaf.is_leaf and leaf is not own for leaf, own in zip(seen, owned, strict=True))
    assert all(one is own for one, own in zip(net.parameters(), owned, strict=True))


def test_negatives_of_all_ranks_are_not_capturable():
    spec = Setting(["view_invariance"]).backbone.spec
    assert ViewInvariance(spec).capturable and not ViewInvariance(spec, negatives="ranks").capturable


def test_a_whole_run_gives_the_same_weights(train, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(PretrainingTask, "_make_graphs", lambda task: Graphs(record=RunAgain))
    folder = train(tmp_path)
    for name in ("backbone.safetensors", "decoder.safetensors"):
        torch.testing.assert_close(load_file(folder / name), load_file(uninterrupted / name), rtol=1e-3, atol=1e-4)


def test_the_average_follows_weights_and_copies_statistics_of_every_type():
    backbone = Setting(["depth_regression"]).backbone
    average = deepcopy(backbone).requires_grad_(False)
    follow = Average(average, backbone)
    with torch.no_grad():
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            tensor.add_(1)
    before = [one.clone() for one in average.parameters()]
    follow.update(0.75)
    for ours, theirs, old in zip(average.parameters(), backbone.parameters(), before, strict=True):
        torch.testing.assert_close(ours, 0.75 * old + 0.25 * theirs)
    assert all(torch.equal(a, b) for a, b in zip(average.buffers(), backbone.buffers(), strict=True))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("label", CAPTURABLE)
def test_a_replayed_step_is_the_plain_step_with_the_same_draws(label, bf16):
    graphs = Graphs()
    replayed = Setting([label], "cuda").train(graphs, bf16=bf16)
    assert {"backbone, encoder", "backbone, decoder", f"priors.{label}"} - recorded(graphs) <= {"backbone, decoder"}
    plain = Setting([label], "cuda").train(bf16=bf16)
    agree(plain, replayed, rtol=0.05 if bf16 else 2e-3, atol=1e-2 if bf16 else 1e-4)
    count = next(name for name in plain[1] if name.endswith("num_batches_tracked"))
    assert replayed[1][count].item() == STEPS


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("accumulate", [1, 3])
def test_replays_of_all_priors_together_are_plain_steps(accumulate):
    labels = ["view_invariance", "augmentation_invariance", "depth_regression", "triplane"]
    graphs = Graphs(owns_gradients=accumulate > 1)
    replayed = Setting(labels, "cuda").train(graphs, accumulate=accumulate, whole=(0, 8))
    assert len(recorded(graphs)) == 3 + len(labels)  # encoder and decoder, the reference's encoder
    plain = Setting(labels, "cuda").train(accumulate=accumulate, whole=(0, 8))
    agree(plain, replayed, rtol=5e-3, atol=5e-4)


@pytest.mark.gpu
@needs_gpu
def test_draws_of_a_replay_are_a_function_of_the_seed():
    class Draws(Prior):
        capturable = True

        def forward(self, batch, features):
            return features["image"].dense.square().mean(), {"draw": torch.rand((), device="cuda")}

    CAPTURABLE["draws"] = (Draws, {})
    try:
        graphs = Graphs()
        (replayed, _), (plain, _) = (Setting(["draws"], "cuda").train(chosen) for chosen in (graphs, None))
    finally:
        del CAPTURABLE["draws"]
    assert "priors.draws" in recorded(graphs)
    drawn = [one["draws/draw"].item() for one in replayed]
    assert drawn == [one["draws/draw"].item() for one in plain] and len(set(drawn)) == STEPS


@pytest.mark.gpu
@needs_gpu
def test_a_replayed_step_does_not_wait():
    def refuse(step):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error" if step > WARM_UP + 2 else "default")

    setting = Setting(["view_invariance", "augmentation_invariance", "depth_regression", "triplane"], "cuda")
    try:
        setting.train(Graphs(), before=refuse)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_a_prior_that_waits_is_run_plainly_and_harms_nothing(monkeypatch, caplog):
    class ReadsOnTheHost(Waits):
        def forward(self, batch, features):
            loss, _ = super().forward(batch, features)
            return loss * (1.0 if loss.item() > -1 else 0.0), {"draw": torch.rand((), device="cuda")}

    monkeypatch.setitem(CAPTURABLE, "reads", (ReadsOnTheHost, {}))
    graphs = Graphs()
    replayed = Setting(["reads"], "cuda").train(graphs)
    assert "priors.reads" not in recorded(graphs) and "backbone, encoder" in recorded(graphs)
    assert "priors.reads is not replayed" in caplog.text
    agree(Setting(["reads"], "cuda").train(), replayed, rtol=2e-3, atol=1e-4)

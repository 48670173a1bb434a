"""Accuracy of a linear classifier on images of other domains and on corrupted images."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from prior3d import Metrics, Probe, Scores, Totals, UserError
from prior3d.probes import (
    FrozenModel,
    FrozenVectors,
    LogisticRegression,
    ProbeData,
    choose_penalty,
    concatenate,
    count_classes,
    fit_logistic,
    labels_of,
    names_of,
)
from prior3d_plugins.probes.robustness.corruptions import CORRUPTIONS, LEVELS, corrupt

_BATCH = 32


class Robustness(Probe):
    """Accuracy of a linear classifier on domains that it was not trained on, and on corrupted images.

    The data defines the domains: each scene of a `classification_folder` is one, and the classifier is trained on
    `train_domains`. Held-out images of training domains count as "in domain". Images of every other domain count under
    its name. Only held-out images of the training domains are corrupted, so nothing else changes; if none of those is
    held out, images of all domains are. The classifier is that of the probe `classification`. It sees no corrupted
    image in training.

    Args:
        penalty: Penalty on the squared weights, per image; null chooses it for each model on a fifth of the training
            images.
        corrupted: Largest number of images to corrupt, evenly spaced, each in four ways at five levels; 0 for none.

    Reference:
        Corruptions after Hendrycks and Dietterich, 2019, arXiv 1903.12261: see `corruptions.py`. This probe reports
        accuracy, not the error relative to AlexNet's.
    """

    needs = ("image", "label")
    trains = True
    lower_is_better = frozenset({"drop, corruptions", "drop, other domains"})
    bounds = MappingProxyType({"accuracy": (0, 1), "drop": (-1, 1)})
    meanings = MappingProxyType(
        {
            "accuracy, in domain": "held-out images of the domains that the classifier was trained on",
            "accuracy, other domains": "the mean over domains it was not trained on",
            "drop, other domains": "how much lower that is than in domain",
            "accuracy, corruptions": "the mean over noise, blur, contrast and JPEG, each the mean over five levels",
            "drop, corruptions": "how much lower that is than on the same images as they were",
        }
    )

    def __init__(
        self, *, penalty: Annotated[float, Gt(0)] | None = None, corrupted: Annotated[int, Ge(0), Le(10**8)] = 300
    ) -> None:
        self.penalty = penalty
        self.corrupted = corrupted

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Scores:
        """Return images and hits by domain, and hits by level of each corruption, for each image."""
        classes = count_classes(data)
        train, held_out = (FrozenVectors(model, data, part) for part in ("train", "held_out"))
        trained, labels = labels_of(data, "train"), labels_of(data, "held_out")
        penalty = self.penalty or choose_penalty(train.take, trained, classes)
        head = fit_logistic(train.take, trained, classes, penalty)
        hits = (head.predict(held_out.take, len(held_out)) == labels).double()
        statistics = _by_domain(data, hits)
        rows = self._rows_to_corrupt(data)
        if len(rows):
            chosen = torch.zeros(len(labels), dtype=torch.float64)
            chosen[rows] = 1
            statistics |= {"corrupted": chosen, "clean hits": chosen * hits}
            statistics |= _by_corruption(model, data, head, rows, labels)
        return Scores(tuple(names_of(data, "held_out")), statistics)

    def summarize(self, total: Totals) -> Metrics:
        """Return the accuracy (0..1) by domain and by corruption, and each one's drop from clean images."""
        accuracy = {
            name.removeprefix("images, "): float(total[name.replace("images", "hits")] / count)
            for name, count in total.items()
            if name.startswith("images, ") and count > 0
        }
        found = {f"accuracy, {name}": value for name, value in accuracy.items()}
        others = [value for name, value in accuracy.items() if name != "in domain"]
        if others:
            found["accuracy, other domains"] = sum(others) / len(others)
            if "in domain" in accuracy:
                found["drop, other domains"] = accuracy["in domain"] - found["accuracy, other domains"]
        if "corrupted" in total:
            under = {name: float(total[f"{name} hits"].mean() / total["corrupted"]) for name in CORRUPTIONS}
            found |= {f"accuracy, {name}": value for name, value in under.items()}
            found["accuracy, corruptions"] = sum(under.values()) / len(under)
            found["drop, corruptions"] = (
                float(total["clean hits"] / total["corrupted"]) - found["accuracy, corruptions"]
            )
        return found

    def controls(self, data: ProbeData) -> Mapping[str, Scores]:
        """Return the scores of always guessing the most frequent training class."""
        majority = labels_of(data, "train").bincount().argmax()
        hits = (labels_of(data, "held_out") == majority).double()
        return {"majority class": Scores(tuple(names_of(data, "held_out")), _by_domain(data, hits))}

    def _rows_to_corrupt(self, data: ProbeData) -> Tensor:
        inside = torch.tensor([name == "in domain" for name in _domains(data)])
        rows = inside.nonzero()[:, 0] if inside.any() else torch.arange(len(inside))
        count = min(self.corrupted, len(rows))
        return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def _domains(data: ProbeData) -> list[str]:
    """Return the domain of each held-out image; "in domain" for domains that are trained on."""
    trained, scenes = set(data.parts["train"].scenes), data.parts["held_out"].scenes
    if taken := {"in domain", "other domains", "corruptions", *CORRUPTIONS} & set(scenes):
        raise UserError(f"a domain cannot be called {taken.pop()}, which has another meaning in this table", "data")
    return ["in domain" if scenes[scene] in trained else scenes[scene] for scene, _ in data.frames["held_out"]]


def _by_domain(data: ProbeData, hits: Tensor) -> dict[str, Tensor]:
    domains = _domains(data)
    statistics = {}
    for domain in dict.fromkeys(domains):
        images = torch.tensor([name == domain for name in domains], dtype=torch.float64)
        statistics |= {f"images, {domain}": images, f"hits, {domain}": images * hits}
    return statistics


@torch.no_grad()
def _by_corruption(
    model: FrozenModel, data: ProbeData, head: LogisticRegression, rows: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Return hits [N, 5] by image and level of each corruption, 0 for images that are not corrupted."""
    images, names = data.field("held_out", "image"), names_of(data, "held_out")
    hits = {f"{name} hits": torch.zeros(len(labels), len(LEVELS), dtype=torch.float64) for name in CORRUPTIONS}
    batches = rows.split(_BATCH)
    for chosen in data.progress(batches, "corrupted images", len(batches)):
        clean = images.take(chosen, model.device).float() / 255
        for corruption in CORRUPTIONS:
            for level in LEVELS:
                worse = corrupt(clean, corruption, level, [names[row] for row in chosen.tolist()])
                # Round to half precision, like the features that the head was fitted to.
                vectors = concatenate([part.half().float() for part in model.read(worse, "pooled")])
                guess = head.logits(vectors).argmax(1).cpu()
                hits[f"{corruption} hits"][chosen, level - 1] = (guess == labels[chosen]).double()
    return hits

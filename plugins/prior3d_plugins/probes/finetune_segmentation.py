"""Semantic segmentation with the whole backbone fine-tuned, on all labels and on fractions of them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d import Metrics, Probe, Scores, Totals, UserError, by_group
from prior3d.backbone import Backbone, Decoder, cosine_fall, decaying_groups, refuse_folded, warm_up
from prior3d.probes import (
    FrozenModel,
    ProbeData,
    class_frequency,
    count_hits,
    counted,
    cross_entropy,
    mean_iou,
    resize,
    score_constant,
)
from prior3d.randomness import generator, reseed

_BATCH = 32
"""Number of held-out images per prediction batch."""
_CLIP = 1.0
"""Greatest norm of the gradient: a fresh head on an untrained encoder starts with long gradients."""


class FinetuneSegmentation(Probe):
    """Segmentation after fine-tuning end to end, with several shares of the labels: mean IoU and pixel accuracy.

    The model is a copy of the backbone, a decoder, batch normalization and a 1 x 1 convolution to classes. Its logits
    are upsampled to the image. Everything is trained, and batch normalization uses the statistics of the batch in
    training. Each share of the labels starts from the same weights and gets the same number of steps. With the same
    seed, all models see the same images in the same order with the same crops and flips, and the parts that do not come
    from the model start from the same numbers.

    Labels are kept for whole images, evenly over scenes; a smaller share is part of every larger one. If a model
    consists of several backbones, they are trained together and their dense maps are concatenated.

    Args:
        labels: Shares of the training images whose labels are used, above 0 and up to 1; each share is at least one
            image.
        decoder: Decoder to fine-tune. "fresh": a new one, the same for every model, so only the encoder is
            transferred. "pretrained": the backbone's own.
        decoder_stride: Image pixels per cell of a fresh decoder's map; the tokens of a ViT are upsampled to it.
        channels: Channels of a fresh decoder's map.
        steps: Optimizer steps, the same for every share.
        batch: Images per step.
        lr: Highest learning rate; it rises over the first tenth of the steps, then falls to 0 along a cosine.
        encoder_lr_scale: Factor on `lr` for the encoder (and a pretrained decoder), which do not start from scratch.
        weight_decay: Weight decay (AdamW) of matrices and kernels; norms and biases have none.
        min_crop: Smallest area of the random crops, as a share of the image; 1 turns crops off.
        flip: Flip half of the images left to right.
        precision: Precision of encoder and decoder: 32 or bf16, which is faster only for large backbones on a GPU.

    Reference:
        After the low-data comparison of Pri3D (Hou et al., 2021, arXiv 2104.11225), which fine-tunes a U-Net on ScanNet
        with 80 to 20 % of the training images. Here images are drawn evenly over scenes, all shares get the same number
        of steps, and the default is a light fresh decoder, so the comparison is of the encoder alone.
    """

    needs = ("image", "semantic")
    trains = True
    seeded = True
    bounds = MappingProxyType({"mIoU": (0, 1), "accuracy": (0, 1)})
    meanings = MappingProxyType(
        {
            "mIoU": "overlap of predicted and true regions over their union, the mean over classes: 1 is perfect",
            "accuracy": "share of pixels whose class is right; large classes decide",
        }
    )

    def __init__(
        self,
        *,
        labels: tuple[Annotated[float, Gt(0), Le(1)], ...] = (1.0, 0.2, 0.1, 0.05),
        decoder: Literal["fresh", "pretrained"] = "fresh",
        decoder_stride: Annotated[int, Ge(1), Le(1024)] = 4,
        channels: Annotated[int, Ge(1), Le(4096)] = 64,
        steps: Annotated[int, Ge(1), Le(10**7)] = 300,
        batch: Annotated[int, Ge(1), Le(10**5)] = 16,
        lr: Annotated[float, Gt(0)] = 1e-3,
        encoder_lr_scale: Annotated[float, Ge(0)] = 1.0,
        weight_decay: Annotated[float, Ge(0)] = 0.05,
        min_crop: Annotated[float, Gt(0), Le(1)] = 0.5,
        flip: bool = True,
        precision: Literal[32, "bf16"] = 32,
    ) -> None:
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"expected labels to be different shares, at least one, got {list(labels)}")
        self.labels = tuple(labels)
        self.decoder = decoder
        self.decoder_stride = decoder_stride
        self.channels = channels
        self.steps = steps
        self.batch = batch
        self.lr = lr
        self.encoder_lr_scale = encoder_lr_scale
        self.weight_decay = weight_decay
        self.min_crop = min_crop
        self.flip = flip
        self.precision = precision

    def check(self, backbone: Backbone, trains: bool = False) -> None:
        """Refuse a model that lacks the decoder or stride, or has folded statistics; see `Probe.check`."""
        name, coarsest = backbone.encoder.name, max(backbone.encoder.channels)
        if self.decoder == "pretrained" and backbone.decoder is None:
            raise UserError(f"{name} has no decoder of its own: use fresh", "decoder")
        if self.decoder == "fresh" and coarsest < self.decoder_stride:
            raise UserError(f"the coarsest stride of {name} is {coarsest}", "decoder_stride")
        # Also at encoder_lr_scale 0: weights are fixed then, but batch normalization still uses the batch's statistics.
        refuse_folded(backbone.encoder.model, name, all_train=True)

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Scores:
        """Fine-tune copies of a model at each share of the labels.

        Returns:
            Pixels labeled, and those hit and predicted at each share, by class: [G, K] each.
        """
        classes = len(class_frequency(data))
        order = label_order(data.groups("train")[1], seed)
        counts: dict[str, Tensor] = {}
        for share in self.labels:
            reseed("finetune_segmentation", seed)  # the same start for every share
            segmenter = self._segmenter(model.trainable(), classes).to(model.device).train()
            self._train(segmenter, data, order[: max(1, round(share * len(order)))], model.device, seed)
            batches = self._score(segmenter.eval(), data, model.device, classes)
            counts |= counted(("labelled", _name("hits", share), _name("predicted", share)), batches)
        return by_group(*data.groups("held_out"), counts)

    def summarize(self, total: Totals) -> Metrics:
        """Return mean IoU over the classes that occur, and pixel accuracy (0..1), at each share of the labels."""
        metrics, labeled = {}, total["labelled"]
        for share in self.labels:
            hits = total[_name("hits", share)]
            metrics[_name("mIoU", share)] = mean_iou(hits, total[_name("predicted", share)], labeled)
            metrics[_name("accuracy", share)] = float(hits.sum() / labeled.sum())
        return metrics

    def controls(self, data: ProbeData) -> Mapping[str, Scores]:
        """Return the scores of guessing the most frequent training class everywhere, the same for every share."""
        frequency = class_frequency(data)
        found = score_constant(data, int(frequency.argmax()), len(frequency))
        counts = {"labelled": found["labelled"]}
        for share in self.labels:
            counts |= {_name(what, share): found[what] for what in ("hits", "predicted")}
        return {"constant guess": by_group(*data.groups("held_out"), counts)}

    def _segmenter(self, backbones: Sequence[Backbone], classes: int) -> "_Segmenter":
        decoders = []
        for backbone in backbones:
            self.check(backbone)
            if self.decoder == "fresh":
                decoders.append(Decoder(backbone.encoder.channels, self.decoder_stride, self.channels))
            else:
                decoders.append(backbone.decoder)
        return _Segmenter([backbone.encoder for backbone in backbones], decoders, classes)

    @torch.enable_grad()
    def _train(self, segmenter: "_Segmenter", data: ProbeData, chosen: Tensor, device: torch.device, seed: int) -> None:
        images, semantic = data.field("train", "image"), data.field("train", "semantic")
        draws = generator("finetune_segmentation batches", seed)
        rows = _epochs(len(chosen), self.steps * self.batch, draws).view(self.steps, self.batch)
        crops = random_crops(self.steps * self.batch, self.min_crop, self.flip, draws)
        crops = crops.view(self.steps, self.batch, 2, 3).to(device)  # all at once: no waiting for copies in the loop
        optimizer, schedule = self._optimizer(segmenter)
        for picked, crop in zip(chosen[rows], crops, strict=True):
            image, truth = cut(images.take(picked, device), semantic.take(picked, device), crop)
            with self._autocast(device):
                logits = segmenter(image)
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(logits, truth).backward()
            nn.utils.clip_grad_norm_(segmenter.parameters(), _CLIP)
            optimizer.step()
            schedule.step()

    def _optimizer(self, segmenter: "_Segmenter") -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        modules = [segmenter.encoders, segmenter.decoders] if self.decoder == "pretrained" else [segmenter.encoders]
        old = [parameter for module in modules for parameter in module.parameters()]
        known = {id(parameter) for parameter in old}
        fresh = [parameter for parameter in segmenter.parameters() if id(parameter) not in known]
        groups = decaying_groups(old, self.encoder_lr_scale * self.lr, self.weight_decay)
        groups += decaying_groups(fresh, self.lr, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, fused=next(segmenter.parameters()).is_cuda)
        rising = max(1, self.steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_up(step, rising) * cosine_fall(step, self.steps)
        )
        return optimizer, schedule

    @torch.no_grad()
    def _score(
        self, segmenter: "_Segmenter", data: ProbeData, device: torch.device, classes: int
    ) -> list[tuple[Tensor, ...]]:
        images, semantic = data.field("held_out", "image"), data.field("held_out", "semantic")
        counts = []
        for rows in torch.arange(len(images)).split(_BATCH):
            with self._autocast(device):
                logits = segmenter(images.take(rows, device).float() / 255)
            counts.append(count_hits(logits.argmax(1), semantic.take(rows, device).long(), classes))
        return counts

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


class _Segmenter(nn.Module):
    """Parallel encoders with a decoder each, and one head: images [N, 3, H, W] in 0..1 to logits [N, classes, H, W]."""

    def __init__(self, encoders: Sequence[nn.Module], decoders: Sequence[Decoder], classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.decoders = nn.ModuleList(decoders)
        width = sum(decoder.smooth[-1].out_channels for decoder in decoders)
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[-2:])
        maps = [
            decoder(encoder(images, pooled=False)[0], size)
            for encoder, decoder in zip(self.encoders, self.decoders, strict=True)
        ]
        finest = max((tuple(part.shape[-2:]) for part in maps), key=math.prod)
        with torch.autocast(images.device.type, enabled=False):  # in bf16, rounding would decide between classes
            return resize(self.head(torch.cat([resize(part, finest).float() for part in maps], 1)), size)


def label_order(scene_of: Tensor, seed: int) -> Tensor:
    """Order training images; the first n, for any n, keep their labels and are evenly spread over scenes.

    Args:
        scene_of: Scene [N] int64 of each image.
        seed: Seed of the order.
    """
    draws = generator("finetune_segmentation labels", seed)
    position = torch.empty(len(scene_of))
    for scene in scene_of.unique():
        rows = (scene_of == scene).nonzero()[:, 0]
        ranks = torch.randperm(len(rows), generator=draws)
        # At any cut-off p, a scene of n images has given p * n of them, rounded up or down at random.
        position[rows] = (ranks + torch.rand((), generator=draws)) / len(rows)
    return position.argsort()


def random_crops(count: int, min_crop: float, flip: bool, draws: torch.Generator) -> Tensor:
    """Draw crops of an image, stretched by at most 4:3.

    Args:
        count: Number of crops, N.
        min_crop: Smallest area, as a share of the image's; 1 for the whole image.
        flip: Mirror half of them left to right.
        draws: The only source of randomness.

    Returns:
        Affine maps [N, 2, 3] from crop to image, the sides of both being -1 and 1; on the CPU.
    """
    area = min_crop + (1 - min_crop) * torch.rand(count, generator=draws)
    stretch = (4 / 3) ** (torch.rand(count, generator=draws) - 0.5)  # of each side by its half
    width = (area.sqrt() * stretch).clamp(area, torch.ones(()))
    height = area / width
    x, y = (2 * torch.rand(2, count, generator=draws) - 1) * torch.stack([1 - width, 1 - height])
    mirrored = torch.rand(count, generator=draws) < 0.5
    width = torch.where(mirrored, -width, width) if flip else width
    zero = torch.zeros(count)
    return torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)


def cut(images: Tensor, semantic: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
    """Cut crops out of images and labels and resize them to the image's size.

    Args:
        images: Images [N, 3, H, W] uint8.
        semantic: Class ids [N, H, W] uint8.
        crops: Affine maps [N, 2, 3], see `random_crops`.

    Returns:
        Images as float in 0..1, resized bilinearly, and labels as int64, resized by nearest pixel, of the same sizes.
    """
    grid = F.affine_grid(crops, [len(images), 1, *images.shape[-2:]], align_corners=False)
    options = {"padding_mode": "border", "align_corners": False}
    image = F.grid_sample(images.float() / 255, grid, mode="bilinear", **options)
    truth = F.grid_sample(semantic[:, None].float(), grid, mode="nearest", **options)
    return image, truth[:, 0].long()


def _epochs(count: int, draws_wanted: int, draws: torch.Generator) -> Tensor:
    """Return image indices; every image appears once before any appears again."""
    epochs = [torch.randperm(count, generator=draws) for _ in range(-(-draws_wanted // count))]
    return torch.cat(epochs)[:draws_wanted]


def _name(what: str, share: float) -> str:
    return f"{what}, {100 * share:g} % of labels"

"""What the splits' rooms are made of and covered with."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from prior3d.contracts.dataset import DataSpec
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms
from prior3d_plugins.datasets.synthetic_rooms.catalog import CLASSES, VARIANTS
from prior3d_plugins.datasets.synthetic_rooms.patterns import FAMILIES
from prior3d_plugins.datasets.synthetic_rooms.rooms import SURFACES, Room, draw_room
from prior3d_plugins.datasets.synthetic_rooms.styles import PALETTES, SPLITS, Style, style_of


def rooms_of(style: Style, count: int) -> list[Room]:
    return [draw_room(np.random.default_rng(seed), style) for seed in range(count)]


def covers(rooms: list[Room]) -> list[tuple[str, str, np.ndarray]]:
    """Every texture of some rooms: class of what it covers, pattern, mean color."""
    found = []
    for room in rooms:
        covered = list(zip(SURFACES, room.surfaces, strict=True))
        covered += [(piece.design.kind, texture) for piece in room.pieces for texture in piece.textures]
        found += [(name, texture.family, texture.colors.mean(0)) for name, texture in covered]
    return found


def test_there_are_enough_shapes_and_patterns_for_every_split():
    assert set(VARIANTS) == set(CLASSES[3:])
    assert all(len(variants) >= 3 for variants in VARIANTS.values())
    assert len(FAMILIES) == 12
    assert set(PALETTES) == set(CLASSES)


@pytest.mark.parametrize("texture", ["independent", "correlated"])
def test_disjoint_splits_share_no_variant_and_no_pattern(texture, monkeypatch):
    drawn = Counter()  # (split, kind, variant), counted where variants are drawn
    for kind, variants in VARIANTS.items():
        for variant, draw in variants.items():

            def counted(rng, draw=draw, kind=kind, variant=variant):
                drawn[split, kind, variant] += 1
                return draw(rng)

            monkeypatch.setitem(variants, variant, counted)
    families = {}
    for split in SPLITS:
        families[split] = {family for _, family, _ in covers(rooms_of(style_of(split, "disjoint", texture), 12))}
    assert sorted(family for own in families.values() for family in own) == sorted(FAMILIES)  # each in one split
    assert sorted((kind, variant) for _, kind, variant in drawn) == sorted(
        (kind, variant) for kind, variants in VARIANTS.items() for variant in variants
    )
    assert {(split, kind) for split, kind, _ in drawn} == {(split, kind) for split in SPLITS for kind in VARIANTS}


def test_shared_splits_draw_from_everything():
    for split in SPLITS:
        assert style_of(split, "shared", "independent") == Style()
    assert {family for _, family, _ in covers(rooms_of(Style(), 12))} == set(FAMILIES)


@pytest.mark.parametrize("split", SPLITS)
def test_a_few_disjoint_rooms_of_every_split_show_every_class(split, tmp_path):
    counts = {"rooms": 4, "validation_rooms": 4, "test_rooms": 4}
    rooms = SyntheticRooms(DataSpec((48, 64), 2, split, tmp_path), frames=16, families="disjoint", **counts)
    semantic = [
        rooms.load(scene, frame, frozenset({"semantic"}))["semantic"] for scene in range(4) for frame in range(16)
    ]
    share = np.bincount(np.concatenate(semantic, axis=None), minlength=len(CLASSES)) / np.size(semantic)
    assert (share > 2e-4).all(), dict(zip(CLASSES, share.round(5), strict=True))


def guess_right(covered: list[tuple[str, str, np.ndarray]]) -> tuple[float, float]:
    """How often the class most frequent for a pattern is right, on the other half, and the most frequent of all."""
    half = len(covered) // 2
    seen = {family: Counter(name for name, other, _ in covered[:half] if other == family) for family in FAMILIES}
    blind = Counter(name for name, *_ in covered[:half]).most_common(1)[0][0]
    right = [seen[family].most_common(1)[0][0] == name if seen[family] else False for name, family, _ in covered[half:]]
    return float(np.mean(right)), float(np.mean([name == blind for name, *_ in covered[half:]]))


def test_patterns_tell_the_class_where_correlated_and_nothing_where_independent():
    right, blind = guess_right(covers(rooms_of(style_of("train", "shared", "correlated"), 60)))
    assert right > blind + 0.4
    right, blind = guess_right(covers(rooms_of(style_of("train", "shared", "independent"), 60)))
    assert right < blind + 0.05


def nearest_palette(covered: list[tuple[str, str, np.ndarray]]) -> float:
    palettes = np.array([[list(bytes.fromhex(c)) for c in PALETTES[name]] for name in CLASSES]).mean(1) / 255
    guesses = [CLASSES[((palettes - color) ** 2).sum(-1).argmin()] for *_, color in covered]
    return float(np.mean([guess == name for guess, (name, *_) in zip(guesses, covered, strict=True)]))


@pytest.mark.parametrize("families", ["shared", "disjoint"])
def test_colors_tell_the_class_nine_times_of_ten_in_every_split(families):
    for split in SPLITS:
        covered = covers(rooms_of(style_of(split, families, "correlated"), 25))
        assert nearest_palette(covered) == pytest.approx(0.9, abs=0.04)
    assert nearest_palette(covers(rooms_of(Style(), 25))) < 0.2


def test_a_class_has_one_place_among_the_patterns_of_every_disjoint_split():
    for split in SPLITS:
        style = style_of(split, "disjoint", "correlated")
        counts = np.zeros((len(CLASSES), len(style.families)))
        for name, family, _ in covers(rooms_of(style, 25)):
            counts[CLASSES.index(name), style.families.index(family)] += 1
        assert counts.argmax(1).tolist() == [number % 4 for number in range(len(CLASSES))]
        assert (counts.max(1) / counts.sum(1)).min() > 0.7


def test_gloss_depends_on_nothing():
    gloss = {name: [] for name in CLASSES}
    for room in rooms_of(style_of("train", "shared", "correlated"), 40):
        for piece in room.pieces:
            gloss[piece.design.kind] += [texture.gloss for texture in piece.textures]
    assert stats.f_oneway(*filter(None, gloss.values())).pvalue > 1e-3
    assert np.std(np.concatenate(list(gloss.values()))) > 0.25


def test_options_change_the_rooms_and_their_place_in_the_cache(tmp_path):
    spec = DataSpec((12, 16), 2, "test", tmp_path)
    options = [{}, {"families": "disjoint"}, {"texture": "correlated"}, {"noise": 0.1}, {"highlights": 0.5}]
    made = [SyntheticRooms(spec, test_rooms=1, frames=2, **chosen) for chosen in options]
    images = [rooms.load(0, 0, frozenset({"image"}))["image"].tobytes() for rooms in made]
    assert len(set(images)) == len(options)
    assert len({rooms.scene_fingerprint(0) for rooms in made}) == len(options)
    again = SyntheticRooms(DataSpec((12, 16), 2, "test", tmp_path / "other", 7), test_rooms=1, frames=2, **options[1])
    assert again.load(0, 0, frozenset({"image"}))["image"].tobytes() == images[1]

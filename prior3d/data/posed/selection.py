"""Selection of scenes: by name, by pattern, by folder, or by a list file with one name a line."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from prior3d.errors import UserError

SceneNames = tuple[str, ...] | Path
"""Patterns of scenes, or a file with the name of a scene in each line, such as `scannetv2_train.txt`."""

_SHOWN = 3
_KNOWN = 10


def names_scene(pattern: str, name: str) -> bool:
    """Return whether a pattern (`kitchen-*`), name or folder of scenes (`chess` of `chess/seq-01`) matches a scene.

    >>> names_scene("chess", "chess/seq-01"), names_scene("chess", "chessboard")
    (True, False)
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern.rstrip('/')}/*")


def matching_scenes(scenes: Sequence[str], chosen: SceneNames, key: str) -> set[str]:
    """Return the scenes that patterns or a list file choose.

    Args:
        scenes: Names of all scenes.
        chosen: Patterns, or a list file.
        key: Option that holds `chosen`, for messages.

    Raises:
        UserError: A pattern or a line matches no scene, or the file cannot be read.
    """
    if isinstance(chosen, Path):
        return _listed(scenes, chosen, key)
    matching: set[str] = set()
    for pattern in chosen:
        names = {name for name in scenes if names_scene(pattern, name)}
        if not names:
            raise UserError(f"no scene {pattern}; there are {_some(scenes, _KNOWN)}", key)
        matching |= names
    return matching


def scenes_of_split(
    names: Sequence[str], scenes: SceneNames, kept_apart: Mapping[str, set[str]], split: str
) -> list[str]:
    """Return the scenes of a split, in the order of `names`.

    Args:
        names: Names of all scenes.
        scenes: Choice of the scenes to train on; empty for all that are not kept apart.
        kept_apart: Scenes of the splits "validation" and "test".
        split: Name of the split.

    Raises:
        UserError: The split has no scene, or a scene is in two splits.
    """
    both = sorted(kept_apart["validation"] & kept_apart["test"])
    if both:
        raise UserError(f"scene {both[0]} is both for validation and for test", "test_scenes")
    if split != "train":
        if not kept_apart[split]:
            raise UserError(f"this data has no split {split}: name scenes for it", f"{split}_scenes")
        return [name for name in names if name in kept_apart[split]]
    wanted = matching_scenes(names, scenes, "scenes") or set(names)
    wanted -= kept_apart["validation"] | kept_apart["test"]
    if not wanted:
        raise UserError("every scene is kept for validation or test: none is left to train on", "scenes")
    return [name for name in names if name in wanted]


def _listed(scenes: Sequence[str], path: Path, key: str) -> set[str]:
    """Return the scenes that a list file names: by their whole name, or by its last part."""
    listed = _read_list(path, key)
    by_name: dict[str, set[str]] = {}
    for scene in scenes:
        for name in {scene, scene.rpartition("/")[2]}:
            by_name.setdefault(name, set()).add(scene)
    # A pattern is compared with every scene, which takes seconds for the 1201 names of ScanNet's list.
    found = {name: by_name.get(name) or {scene for scene in scenes if names_scene(name, scene)} for name in listed}
    unknown = [name for name in listed if not found[name]]
    if unknown:
        raise UserError(
            f"{len(unknown)} of the {len(listed)} scenes in {path} do not exist: {_some(unknown, _SHOWN)};"
            f" there are {_some(scenes, _SHOWN)}",
            key,
        )
    return set().union(*found.values())


def _read_list(path: Path, key: str) -> list[str]:
    """Return the names in a list file, without blank lines and comments (`# ...`)."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"no file {path}: set a file with one scene a line, or a list: [{path.name}]", key) from None
    except (OSError, UnicodeDecodeError) as error:
        why = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror or type(error).__name__
        raise UserError(f"cannot read the list of scenes {path}: {why}", key) from error
    names = [name for line in lines if (name := line.partition("#")[0].strip().rstrip("/"))]
    if not names:
        raise UserError(f"no scene is named in {path}", key)
    return list(dict.fromkeys(names))


def _some(names: Sequence[str], shown: int) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")

"""Which folders and files of ScanNet are scenes, and in which of its three layouts each is."""

from dataclasses import dataclass
from pathlib import Path

from prior3d.data.posed import COLOR_EXTENSIONS, FileNames, find_scenes, has_scene

COLOR = FileNames("color", "color", r"(\d+)", COLOR_EXTENSIONS)
DEPTH = FileNames("depth", "depth", r"(\d+)", ("png",))
POSE = FileNames("pose", "pose", r"(\d+)", ("txt",))

EXPORTED_INTRINSICS = "intrinsic/intrinsic_depth.txt", "intrinsic/intrinsic_color.txt"
FRAMES_25K_INTRINSICS = "intrinsics_depth.txt", "intrinsics_color.txt"


@dataclass(frozen=True)
class ScanNetScene:
    """Where one scene is.

    Attributes:
        folder: its folder.
        labels: folder of its folders of label images.
        sens: its `.sens` file; None if it is read from folders of files.
    """

    folder: Path
    labels: Path
    sens: Path | None = None

    @property
    def name(self) -> str:
        """ScanNet's own name of the scene, with which the names of its other files begin."""
        return self.folder.resolve().name if self.sens is None else self.sens.stem

    @property
    def about(self) -> Path:
        """The file of facts about the scan, with its axis alignment; it need not exist."""
        return self.folder / f"{self.name}.txt"

    @property
    def mesh(self) -> Path:
        """The cleaned mesh, which need not exist."""
        return self.folder / f"{self.name}_vh_clean_2.ply"

    @property
    def is_frames_25k(self) -> bool:
        """Whether it is laid out as `scannet_frames_25k`, whose labels are ids of NYU40."""
        return self.sens is None and any((self.folder / name).is_file() for name in FRAMES_25K_INTRINSICS)


def scenes_in(root: Path) -> dict[str, ScanNetScene]:
    """Return the scenes of a folder by name, sorted.

    A folder that has color and depth is read from them even if there is a `.sens` file, too: someone exported it. A
    folder with several `.sens` files has a scene for each, whose labels are in a folder of its name.

    Raises:
        UserError: there is none; the key is `root`.
    """
    expected = "a .sens file, or the folders color, depth and pose"
    found: dict[str, ScanNetScene] = {}
    for name, folder in find_scenes(root, is_scene, expected).items():
        streams = [] if COLOR.any_in(folder) and DEPTH.any_in(folder) else _streams(folder)
        if len(streams) > 1:
            above = "" if folder == root else f"{name}/"
            found |= {f"{above}{stream.stem}": ScanNetScene(folder, folder / stream.stem, stream) for stream in streams}
        else:
            found[name] = ScanNetScene(folder, folder, *streams)
    return {name: found[name] for name in sorted(found)}


def is_scene(folder: Path) -> bool:
    """Return whether a folder has files of a scene."""
    return any(names.any_in(folder) for names in (COLOR, DEPTH, POSE)) or bool(_streams(folder))


def has_stream(folder: Path) -> bool:
    """Return whether a folder is or contains scenes with a `.sens` file."""
    return has_scene(folder, lambda inner: bool(_streams(inner)))


def _streams(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.sens") if not path.name.startswith("."))

"""Scenes of posed views with depth: cameras, files, pairs, surfaces, registration."""

from prior3d.data.posed.cameras import (
    Calibration,
    FocalAndCenter,
    GivenIntrinsics,
    PixelCenters,
    pinhole,
    pose_problem,
    read_numbers,
    read_pinhole,
    read_pose,
    scaled,
)
from prior3d.data.posed.checking import Checking
from prior3d.data.posed.colmap_depth import colmap_depth_size, read_colmap_depth
from prior3d.data.posed.colmap_model import (
    ColmapCamera,
    ColmapImage,
    ColmapPoints,
    colmap_file,
    read_colmap_cameras,
    read_colmap_images,
    read_colmap_points,
)
from prior3d.data.posed.dataset import DEFAULT_PAIRS, DEFAULT_SURFACE, PosedDataset
from prior3d.data.posed.depth_codes import Along, DepthBits, DepthCodes
from prior3d.data.posed.files import (
    COLOR_EXTENSIONS,
    FileNames,
    FileRecording,
    FrameFiles,
    RGBDFolder,
    SceneFiles,
    color_size,
    depth_size,
    find_scenes,
    has_scene,
    match_frames,
    nearest_file,
)
from prior3d.data.posed.formats import ReaderOptions, existing_root, make_reader, recognizing
from prior3d.data.posed.fusion import PosedFrame, fuse
from prior3d.data.posed.lenses import undistorted_camera
from prior3d.data.posed.pairs import PairOptions, PairTable, angle_bin, mine_pairs, pairs_of_tracks
from prior3d.data.posed.ply import read_ply
from prior3d.data.posed.rays import along_axis
from prior3d.data.posed.recorded import Choice, RecordedScenes
from prior3d.data.posed.selection import SceneNames
from prior3d.data.posed.sparse_depth import sparse_depth
from prior3d.data.posed.surface import Surface, SurfaceOptions
from prior3d.data.posed.tracks import Tracks
from prior3d.data.posed.trajectories import (
    ListRow,
    TimedPoses,
    associate,
    mirrored_y,
    numbers_of,
    pose_of_quaternion,
    read_rows,
)

__all__ = [
    # datasets
    "PosedDataset",
    "RecordedScenes",
    "Checking",
    "Choice",
    "SceneNames",
    "PairOptions",
    "DEFAULT_PAIRS",
    "SurfaceOptions",
    "DEFAULT_SURFACE",
    # computed once per scene
    "PairTable",
    "angle_bin",
    "mine_pairs",
    "pairs_of_tracks",
    "PosedFrame",
    "Surface",
    "fuse",
    # cameras and poses
    "Calibration",
    "FocalAndCenter",
    "GivenIntrinsics",
    "PixelCenters",
    "mirrored_y",
    "numbers_of",
    "pinhole",
    "pose_of_quaternion",
    "pose_problem",
    # lists with time stamps
    "ListRow",
    "TimedPoses",
    "associate",
    "read_rows",
    "read_numbers",
    "read_pinhole",
    "read_pose",
    "scaled",
    "undistorted_camera",
    # folders of files
    "COLOR_EXTENSIONS",
    "Along",
    "DepthBits",
    "DepthCodes",
    "along_axis",
    "FileNames",
    "FileRecording",
    "FrameFiles",
    "RGBDFolder",
    "SceneFiles",
    "color_size",
    "depth_size",
    "find_scenes",
    "has_scene",
    "match_frames",
    "nearest_file",
    "read_ply",
    # points that frames see
    "Tracks",
    "sparse_depth",
    # models of COLMAP, which several formats bring
    "ColmapCamera",
    "ColmapImage",
    "ColmapPoints",
    "colmap_file",
    "read_colmap_cameras",
    "read_colmap_images",
    "read_colmap_points",
    "colmap_depth_size",
    "read_colmap_depth",
    # readers by format
    "ReaderOptions",
    "existing_root",
    "make_reader",
    "recognizing",
]

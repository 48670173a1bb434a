"""From files to batches: posed recordings, single images, and the samples made of either.

This package has the decoding of files. Scenes of posed views are in `prior3d.data.posed`, single images in
`prior3d.data.images`, and the processing of decoded views in `prior3d.data.sample`.
"""

from prior3d.data.decoding import (
    ImageHeader,
    Orientation,
    image_size,
    read_16bit,
    read_array,
    read_calibrated_color,
    read_color,
    read_header,
    read_ids,
    same_field_of_view,
)
from prior3d.data.depth_files import DepthHeader, read_depth_header, read_depth_values
from prior3d.data.libraries import library

__all__ = [
    "DepthHeader",
    "ImageHeader",
    "Orientation",
    "image_size",
    "library",
    "read_16bit",
    "read_array",
    "read_calibrated_color",
    "read_color",
    "read_depth_header",
    "read_depth_values",
    "read_header",
    "read_ids",
    "same_field_of_view",
]

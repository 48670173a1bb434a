"""The table of every field a batch may hold: its meaning, and how it is moved, batched and stored.

A batch is a plain dict of tensors. B is the batch size, V the number of views of a sample (1 for single images), H x W
the single image size of a run, N a varying number of rows. The code that assembles, augments, collates, moves and
stores batches loops over this table. A dataset therefore adds its own fields, named `<plugin>/<field>`, by declaring
them in `Dataset.fields`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from prior3d.errors import UserError

IGNORE_CLASS = 255
"""Class id of pixels that no probe may count."""

IGNORE_BOX = -1
"""Class id of boxes that no probe may count, such as crowds."""

UNKNOWN_DEPTH = 0.0
"""Depth value that means: not measured."""

Moves = Literal["resample", "nearest", "vectors", "intrinsics", "boxes", "none"]
"""How the affine map from a view's image to the output changes a field.

- resample: pixel values are resized with antialiasing.
- nearest: each output pixel takes the value at its center; values are not mixed.
- vectors: like nearest, and the first component changes sign if the image is mirrored.
- intrinsics: a pinhole matrix.
- boxes: left, top, right, bottom in pixels, clipped to the output; boxes without area are dropped.
- none: the field does not change.
"""

Numbers = Literal["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool"]
"""Number types of a field, by the names that NumPy and PyTorch share."""

Batches = Literal["stack", "pack"]


@dataclass(frozen=True)
class Field:
    """Description of one entry of a batch: its content, and how that content is processed.

    A view holds the same field without the axes B and V, as a NumPy array at the file's own resolution, channels last:
    a field [B, V, 3, H, W] is [h, w, 3] there. A field without the axis V has one value for all views of a sample.

    >>> flow = Field("acme/flow", "[B, V, 2, H, W]", "float32", "shares of the image's size", moves="vectors")
    >>> flow.axes, flow.is_map, flow.of_views
    (('B', 'V', '2', 'H', 'W'), True, True)

    Attributes:
        name: name of the field; a plugin's own field is named `<plugin>/<field>`.
        shape: [B, ...], [B, V, ...], or [N, ...] if it is packed; maps end in H, W or in C, H, W.
        dtype: number type in the batch; a `resample` field of bytes becomes float32 0..1 on the device.
        meaning: one-line description, with units.
        moves: how augmentation changes it; see `Moves`.
        batches: `stack`, or `pack` if views have different numbers of rows. Packed rows are concatenated, and
            `<name>_view` [N] int64 holds the view, b * V + v, of each row.
        kept_as: number type in the files of probes, if that of the batch wastes memory.
        probes_only: whether it is a label: probes measure with it, and no prior may read it.
        made_from: the field that it is computed from or comes with; a dataset declares only that field.
        rows_of: the packed field whose rows it describes; both are cut together and share one `<name>_view`.
        mirrors: whether it stays valid when left and right are swapped.
        on_host: whether it stays in host memory when a batch moves to a GPU, because readers look things up by it; read
            from the GPU, every look-up would wait for the device.
        of_geometry: whether it relates the pixels of a view to the world, as depth does. With `data.control: permuted`
            it then stays with the pose; the other fields of a view go with the image.
    """

    name: str
    shape: str
    dtype: Numbers
    meaning: str
    moves: Moves = "none"
    batches: Batches = "stack"
    kept_as: Numbers | None = None
    probes_only: bool = False
    made_from: str | None = None
    rows_of: str | None = None
    mirrors: bool = True
    on_host: bool = False
    of_geometry: bool = False

    def __post_init__(self) -> None:
        for what, value, kind in (
            ("the dtype", self.dtype, Numbers),
            ("the moves", self.moves, Moves),
            ("the batches", self.batches, Batches),
            ("kept_as", self.kept_as or self.dtype, Numbers),
        ):
            if value not in get_args(kind):
                raise ValueError(
                    f"expected {what} of {self.name} to be one of {', '.join(get_args(kind))}, got {value}"
                )
        axes, packed = self.axes, self.batches == "pack"
        if axes[0] != ("N" if packed else "B") and self.moves != "boxes":
            raise ValueError(
                f"expected [B, ...], or [N, ...] where packed, as the shape of {self.name}, got {self.shape}"
            )
        if self.moves in ("resample", "nearest", "vectors") and not (self.is_map and (self.of_views or self.made_from)):
            raise ValueError(f"expected [B, V, H, W] or [B, V, C, H, W] for {self.moves}, got {self.name} {self.shape}")
        if self.moves == "boxes" and (axes != ("N", "4") or self.rows_of is not None):
            raise ValueError(f"expected packed [N, 4] for boxes, got {self.name} {self.shape}")
        if self.moves == "intrinsics" and axes != ("B", "V", "3", "3"):
            raise ValueError(f"expected [B, V, 3, 3] for intrinsics, got {self.name} {self.shape}")
        if packed and self.moves not in ("boxes", "none"):
            raise ValueError(f"expected a packed field to move as boxes or none, got {self.name} {self.moves}")
        if self.rows_of is not None and not packed:
            raise ValueError(f"expected rows of {self.rows_of} to be packed, got {self.name} {self.shape}")

    @property
    def axes(self) -> tuple[str, ...]:
        """Names or lengths of the axes, in the order of `shape`."""
        return tuple(axis.strip() for axis in self.shape.strip("[] ").split(","))

    @property
    def is_map(self) -> bool:
        """Whether it has a value for each pixel of a view."""
        return self.axes[0] == "B" and self.axes[-2:] == ("H", "W") and len(self.axes) in (4, 5)

    @property
    def is_picture(self) -> bool:
        """Whether it holds RGB images."""
        return self.moves == "resample" and self.axes[-3] == "3"

    @property
    def of_views(self) -> bool:
        """Whether each view has its own value or rows."""
        return self.batches == "pack" or "V" in self.axes

    @property
    def view_index(self) -> str:
        """Name of the field that holds the view of each row of this packed field."""
        return f"{self.rows_of or self.name}_view"

    @property
    def is_view_index(self) -> bool:
        """Whether this field is itself the `<name>_view` of a packed field."""
        return self.rows_of is not None and self.name == self.view_index


class FieldTable(Mapping[str, Field]):
    """Fields by name, in the order in which samples are assembled.

    Each packed field adds its `<name>_view`.

    Args:
        fields: the fields.
        owners: field name to the plugin that adds the field, for messages.
    """

    def __init__(self, fields: Iterable[Field], owners: Mapping[str, str] | None = None) -> None:
        self._fields: dict[str, Field] = {}
        self._owners = dict(owners or {})
        for field in fields:
            self._fields[field.name] = field
            if field.batches == "pack" and field.rows_of is None:
                self._fields[field.view_index] = _view_index(field)

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    @property
    def probes_only(self) -> frozenset[str]:
        """Names of the labels, which probes measure with and no prior may read."""
        return frozenset(name for name, field in self.items() if field.probes_only)

    def rows_of(self, name: str) -> frozenset[str]:
        """Return the names of a packed field and of all fields that share its rows."""
        return frozenset({name} | {other for other, field in self.items() if field.rows_of == name})

    def declared(self, fields: frozenset[str]) -> frozenset[str]:
        """Return what a dataset must decode for some fields: the field itself, its source, the rows it describes."""
        found = {(self[name].made_from or name) if name in self else name for name in fields}
        found |= {self[name].rows_of for name in found if name in self and self[name].rows_of is not None}
        return frozenset(found) - ALWAYS

    def with_fields(self, fields: Iterable[Field], owner: str) -> "FieldTable":
        """Return a copy of the table with the fields of a plugin added.

        Args:
            fields: named `<plugin>/<field>`.
            owner: name of the plugin, for messages.

        Raises:
            UserError: a name is not of the form `<plugin>/<field>`, or another plugin has a different field of this
                name.
        """
        found = [field for field in self.values() if not field.is_view_index]
        owners, known = dict(self._owners), dict(self._fields)
        for field in fields:
            added = [field, _view_index(field)] if field.batches == "pack" and field.rows_of is None else [field]
            for one in added:
                _check_name(one, owner, known, owners)
                known[one.name], owners[one.name] = one, owner
            found.append(field)
        for field in known.values():
            for other in (field.made_from, field.rows_of):
                if other is not None and other not in known:
                    raise UserError(
                        f"{owner}: the field {field.name} is made from {other}, which is not a field", "name"
                    )
        return FieldTable(found, owners)


def _view_index(field: Field) -> Field:
    meaning = f"b * V + v: the view that a row of {field.name} belongs to"
    return Field(
        field.view_index,
        "[N]",
        "int64",
        meaning,
        batches="pack",
        probes_only=field.probes_only,
        made_from=field.name,
        rows_of=field.name,
    )


def _check_name(field: Field, owner: str, known: Mapping[str, Field], owners: Mapping[str, str]) -> None:
    name = field.name
    if name in known and name not in owners:
        raise UserError(
            f"{owner} brings a field {name}, which is one of prior3d's own: call it <plugin>/{name}", "name"
        )
    plugin, _, rest = name.partition("/")
    if not plugin or not rest:
        raise UserError(f"{owner} brings a field {name!r}: a plugin's own are called <plugin>/<field>", "name")
    if name in known and known[name] != field:
        raise UserError(f"{owner} and {owners[name]} both bring a field {name}, and the two differ", "name")


_TABLE = (
    Field("image", "[B, V, 3, H, W]", "uint8", "augmented RGB views; float32 0..1 on the device", "resample"),
    Field("image_clean", "[B, V, 3, H, W]", "uint8", "as image, no photometric changes", "resample", made_from="image"),
    Field(
        "depth",
        "[B, V, H, W]",
        "float32",
        "meters along the optical axis, 0 = unknown",
        "nearest",
        of_geometry=True,
    ),
    Field(
        "pseudo_depth",
        "[B, V, H, W]",
        "float32",
        "depth or disparity of unknown scale and shift, 0 = unknown",
        "nearest",
    ),
    Field("pseudo_kind", "[B]", "int64", "0 = pseudo_depth is depth, 1 = it is disparity", made_from="pseudo_depth"),
    Field(
        "intrinsics",
        "[B, V, 3, 3]",
        "float32",
        "pinhole matrix in pixels, pixel centers at +0.5",
        "intrinsics",
        mirrors=False,
        of_geometry=True,
    ),
    Field(
        "world_from_camera",
        "[B, V, 4, 4]",
        "float32",
        "pose, meters; OpenCV axes: x right, y down, z forward",
        mirrors=False,
        of_geometry=True,
    ),
    Field("semantic", "[B, V, H, W]", "int64", "class ids, 255 = ignore", "nearest", kept_as="uint8", probes_only=True),
    Field(
        "instances",
        "[B, V, H, W]",
        "int64",
        "ids of objects within a view, 0 = none",
        "nearest",
        kept_as="int32",
        probes_only=True,
    ),
    Field(
        "normals",
        "[B, V, 3, H, W]",
        "float32",
        "unit, camera axes, toward the camera, 0 = unknown",
        "vectors",
        kept_as="float16",
        probes_only=True,
        of_geometry=True,
    ),
    Field("label", "[B]", "int64", "class id of a whole image", probes_only=True),
    Field(
        "boxes",
        "[N, 4]",
        "float32",
        "left, top, right, bottom of objects, pixels, edges of the image at 0 and W or H",
        "boxes",
        batches="pack",
        probes_only=True,
    ),
    Field(
        "box_labels",
        "[N]",
        "int64",
        "class id of each box, -1 = ignore what lies in it, such as a crowd",
        batches="pack",
        probes_only=True,
        rows_of="boxes",
    ),
    Field(
        "box_instances",
        "[N]",
        "int64",
        "id of each box's object in instances, 0 = none",
        batches="pack",
        probes_only=True,
        rows_of="boxes",
    ),
    Field(
        "surface",
        "[N, 3]",
        "float32",
        "reconstruction in each view's frustum box; meters, world",
        batches="pack",
        mirrors=False,
    ),
    Field(
        "surface_color",
        "[N, 3]",
        "float32",
        "RGB 0..1 of each surface point: mean of the raw pixels that saw it",
        batches="pack",
        rows_of="surface",
        mirrors=False,
    ),
    Field("scene", "[B]", "int64", "index into the run's scene manifest; stays on the host", on_host=True),
    Field("frame", "[B, V]", "int64", "index of the frame within its scene"),
    Field("image_crops", "[B, 2, 3, H, W]", "uint8", "two augmented crops of ONE image", "resample", made_from="image"),
    Field(
        "crop_from_image",
        "[B, 2, 3, 3]",
        "float32",
        "homography: pixels of that image to pixels of each crop",
        made_from="image",
    ),
)

FIELDS = FieldTable(_TABLE)
"""prior3d's own fields; `prior3d.contracts.dataset.table_of` adds those of a dataset."""

SURFACE_FIELDS = FIELDS.rows_of("surface")
"""Fields cut out of a scene's fused surface, which is prepared only for runs that read one of them."""

ALWAYS = frozenset({"scene", "frame"})
"""Fields of every sample of every dataset: where the sample comes from."""


def is_known(name: str) -> bool:
    """Whether a field name is in the table or belongs to a plugin (`<plugin>/<field>`)."""
    return name in FIELDS or "/" in name


def provides_field(name: str, provides: frozenset[str], table: Mapping[str, Field] = FIELDS) -> bool:
    """Whether a dataset that provides `provides` gives a field, directly or through the field it is computed from."""
    return name in provides or (name in table and table[name].made_from in provides)


def missing_fields(needs: tuple[str, ...], provides: frozenset[str], table: Mapping[str, Field] = FIELDS) -> list[str]:
    """Return the entries of `needs` that a dataset providing `provides` cannot give.

    >>> missing_fields(("image_clean", "depth|pseudo_depth"), frozenset({"image"}))
    ['depth|pseudo_depth']

    Args:
        needs: field names; "depth|pseudo_depth" means that either one is enough.
        provides: field names a dataset declares.
        table: all known fields, including those of the dataset.
    """

    def available(name: str) -> bool:
        return name in ALWAYS or provides_field(name, provides, table)

    return [need for need in needs if not any(available(name) for name in need.split("|"))]

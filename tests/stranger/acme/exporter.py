"""An exporter: plain arrays for a library that reads nothing else."""

import json

import numpy as np

from prior3d import Exporter, UserError
from prior3d.files import replacing


class Arrays(Exporter):
    """One `.npz`: an array for each weight, and the description as JSON in the array `about`."""

    def export(self, model, description, target):
        if not target.parent.is_dir():
            raise UserError(f"there is no folder {target.parent}")
        arrays = {name: value.numpy(force=True) for name, value in model.state_dict().items()}
        if bad := [name for name, value in arrays.items() if not np.isfinite(value).all()]:
            raise UserError(f"{bad[0]} holds numbers that are not finite")
        with replacing(target) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, about=json.dumps(dict(description)), **arrays)
            with np.load(temporary) as written:
                if any(not np.array_equal(written[name], value) for name, value in arrays.items()):
                    raise UserError(f"{target} holds other weights than were written")
        return target

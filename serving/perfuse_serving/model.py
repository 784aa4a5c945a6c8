"""A bundle that answers: an array in, a mask or a probability out."""

import threading
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from perfuse.bundle import Bundle
from perfuse.contract import read_by
from perfuse.errors import ContractError
from perfuse.geometry import Spacing
from perfuse.storage import digest_json
from perfuse_serving.images import RequestError, Voxels

Output = Literal["mask", "probability"]
Window = tuple[float, float]

VESSEL = 255
"""Value of vessel in a mask, as in labels: what TIFF viewers show as white."""


class Model:
    """A bundle's network with its contract. One request is worked on at a time, which bounds memory."""

    def __init__(self, bundle: Bundle) -> None:
        from perfuse.inference import engine_of
        from perfuse.models import build

        self.bundle = bundle
        network = build(bundle.contract.forward.network)
        network.load_state_dict(bundle.weights)
        self._engine = engine_of(network, bundle.contract.forward)
        self._turn = threading.Lock()

    def segment(
        self,
        voxels: Voxels,
        output: Output,
        *,
        class_name: str = "",
        voxel_size_um: Spacing | None = None,
        window: Window | None = None,
    ) -> npt.NDArray[Any]:
        """Mask uint8 (0, 255) by the bundle's threshold, or probability float32 (0 … 1), of the request's shape.

        voxels: uint8 or uint16 [y, x] or [z, y, x]. class_name: whose, of a model of several classes.
        voxel_size_um: z, y, x; checked against the contract when given.
        window: intensities that become 0 and 1; else the contract's percentiles of these very voxels.
        """
        from perfuse.inference import probability_of_array

        forward, classes = self.bundle.contract.forward, self.bundle.class_names
        if class_name not in classes:
            there = (
                f"say class={' or class='.join(classes)}" if forward.network.classes else "it has one; leave class out"
            )
            raise RequestError(422, f"The model has no class {class_name!r}: {there}.")
        if voxel_size_um is not None:
            try:
                forward.check_voxel_size(voxel_size_um, "in the request")
            except ContractError as error:
                raise RequestError(422, str(error)) from error
        with self._turn:
            answer = probability_of_array(self._engine, forward, voxels, window=window)
        soft: npt.NDArray[np.uint8] = answer[classes.index(class_name)]
        if output == "probability":
            return soft.astype(np.float32) / np.float32(255)
        return np.where(soft >= self.threshold(class_name), VESSEL, 0).astype(np.uint8)

    def threshold(self, class_name: str) -> int:
        """By which the mask of a class is cut, of 255."""
        return read_by(self.bundle.threshold, class_name)

    def about(self) -> dict[str, Any]:
        """What `/model` says: where the bundle comes from, its contract, and the digests that identify it."""
        return {
            "uri": self.bundle.uri,
            "version": self.bundle.uri.rstrip("/").rsplit("/", 1)[-1],
            "digest": self.bundle.digest(),
            "forward_digest": self.bundle.forward_digest(),
            "lineage_digest": digest_json(self.bundle.lineage),
            "contract": self.bundle.contract.model_dump(mode="json"),
        }


def parse_voxel_size(text: str | None) -> Spacing | None:
    """`50` or `50,50,50` (z, y, x, in µm) as three numbers; RequestError for anything else."""
    if text is None:
        return None
    try:
        sizes = [float(part) for part in text.split(",")]
        z, y, x = sizes * 3 if len(sizes) == 1 else sizes
    except ValueError as error:
        raise RequestError(422, f"voxel_size_um={text} is neither one number nor three (z,y,x), in µm.") from error
    if not all(0 < s < float("inf") for s in (z, y, x)):
        raise RequestError(422, f"voxel_size_um={text} must be above 0.")
    return z, y, x


def parse_window(low: float | None, high: float | None) -> Window | None:
    """Both ends of an intensity window, or neither; RequestError for one alone, or in the wrong order."""
    if low is None and high is None:
        return None
    if low is None or high is None or not -float("inf") < low < high < float("inf"):
        raise RequestError(422, f"low={low} and high={high} must be given together, low below high.")
    return low, high

"""A bundle: network weights (safetensors), contract and lineage (JSON): what is registered, promoted and served; and several as one."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract import Contract, Decision, Forward, Fusion, Threshold
from perfuse.errors import RegistryError
from perfuse.storage import digest_json

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights.safetensors"
CONTRACT = "contract.json"
LINEAGE = "lineage.json"
FILES = (WEIGHTS, CONTRACT, LINEAGE)
BY_AXIS = {"axes", "axis_weights", "axis_fusion", "voxel_size_um"}
"""Keys of `forward` that do not change what is seen along one axis."""


@dataclass(frozen=True)
class Bundle:
    """A trained network with everything that is needed to use it."""

    contract: Contract
    weights: "dict[str, torch.Tensor]"
    """State of the network, on the CPU."""
    lineage: dict[str, Any]
    """Recipe, data digests and run that made it."""
    uri: str = ""
    """Where it came from, e.g. models:/vessels/3; empty for one that was just trained."""

    @property
    def members(self) -> "tuple[Bundle, ...]":
        """Whose logits are averaged: its own."""
        return (self,)

    @property
    def fusion(self) -> Fusion:
        """How its only member is read: as it is."""
        return Fusion()

    @property
    def class_names(self) -> tuple[str, ...]:
        """What it tells apart, in the order of its logits; an only class has no name."""
        return self.contract.forward.network.class_names

    @property
    def threshold(self) -> Threshold:
        """What its probabilities are read by, of 255."""
        return self.contract.decision.threshold

    @property
    def donors(self) -> dict[str, str]:
        """Donors whose data are in the weights, each with the way that they took, from the end to the beginning."""
        return {donor: f"{self.uri} ← {path}" for donor, path in self.lineage.get("donors", {}).items()}

    def with_threshold(self, threshold: Threshold) -> "Bundle":
        """The same network, read with another threshold: predictions stay valid, for their digest is of `forward`."""
        return replace(self, contract=self.contract.changed(decision=Decision(threshold=threshold)))

    def with_forward(self, forward: Forward) -> "Bundle":
        """The same weights, asked otherwise."""
        return replace(self, contract=self.contract.changed(forward=forward))

    @cached_property
    def weights_digest(self) -> str:
        """Identity of the weights."""
        return weights_digest(self.weights)

    def forward_digest(self) -> str:
        """Identity of what the network answers: weights and `forward`, not the decision."""
        return digest_json({"weights": self.weights_digest, "forward": self.contract.forward.model_dump(mode="json")})

    def seen_digest(self) -> str:
        """Identity of what the network sees along one axis: all of `forward` but the choice of axes and how they become one."""
        forward = self.contract.forward.model_dump(mode="json", exclude=BY_AXIS)
        return digest_json({"weights": self.weights_digest, "forward": forward})

    def digest(self) -> str:
        """Identity of the whole bundle: `forward` and decision."""
        return digest_json(
            {"forward": self.forward_digest(), "decision": self.contract.decision.model_dump(mode="json")}
        )

    def save(self, folder: Path) -> None:
        """Write the three files of the bundle into a folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.weights.items()}, folder / WEIGHTS)
        (folder / CONTRACT).write_text(self.contract.model_dump_json(indent=2))
        (folder / LINEAGE).write_text(json.dumps(self.lineage, indent=2, sort_keys=True))

    @classmethod
    def load(cls, folder: Path, uri: str = "") -> "Bundle":
        """Read a bundle's folder; RegistryError when a file is missing."""
        from safetensors.torch import load_file

        for name in FILES:
            if not (folder / name).is_file():
                raise RegistryError(f"{uri or folder} is not a perfuse bundle: {name} is missing.")
        return cls(
            Contract.model_validate_json((folder / CONTRACT).read_text()),
            load_file(folder / WEIGHTS),
            json.loads((folder / LINEAGE).read_text()),
            uri,
        )


@dataclass(frozen=True)
class Ensemble:
    """Bundles that answer as one: the mean of their logits, each counting alike, however many axes it sees, or as `fusion` says."""

    members: tuple[Bundle, ...]
    """Of the same classes."""
    threshold: Threshold
    """What their probabilities are read by, of 255."""
    fusion: Fusion = field(default_factory=Fusion)

    @property
    def class_names(self) -> tuple[str, ...]:
        """As of a bundle."""
        return self.members[0].class_names

    @property
    def uri(self) -> str:
        """The members, for people: no address in the registry."""
        return "mean of " + ", ".join(member.uri for member in self.members)

    @property
    def donors(self) -> dict[str, str]:
        """As of a bundle, of all members."""
        return {donor: path for member in reversed(self.members) for donor, path in member.donors.items()}

    def with_threshold(self, threshold: Threshold) -> "Ensemble":
        """The same members, read with another threshold."""
        return replace(self, threshold=threshold)

    def forward_digest(self) -> str:
        """Identity of what they answer together; their order does not matter where all count alike."""
        digests = [member.forward_digest() for member in self.members]
        if self.fusion == Fusion():
            return digest_json(sorted(digests))
        return digest_json([digests, self.fusion.model_dump(mode="json")])

    def digest(self) -> str:
        """Identity of answer and threshold."""
        return digest_json({"forward": self.forward_digest(), "threshold": self.threshold})


Model = Bundle | Ensemble


def weights_digest(weights: "dict[str, torch.Tensor]") -> str:
    """Digest of tensors on the CPU, with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()

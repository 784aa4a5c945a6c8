"""Networks by name, what stands in front of them, and what this machine runs them on."""

from perfuse.models.building import build, build_shapes, check_logits, check_size, with_source
from perfuse.models.machine import Precision, best_device, device_name, keep_freed_memory, resolve_precision
from perfuse.models.pretrained import check_at_hand
from perfuse.models.state import fit_weights, read_weights

__all__ = [
    "Precision",
    "best_device",
    "build",
    "build_shapes",
    "check_at_hand",
    "check_logits",
    "check_size",
    "device_name",
    "fit_weights",
    "keep_freed_memory",
    "read_weights",
    "resolve_precision",
    "with_source",
]

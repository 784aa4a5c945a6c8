"""Checkpoints on any URL: the tensors first, then `latest.json`, which names them with their digest."""

import io
from typing import Any

from perfuse import storage
from perfuse.errors import PerfuseError

LATEST = "latest.json"


def save(folder: str, state: dict[str, Any]) -> None:
    """Write a checkpoint and make it the latest; the one before it is removed after that.

    state: tensors and plain values, with `step`, `best_step`, `judged`, and in `course` the position in the schedule.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    before = _latest(folder)
    name = f"step-{state['step']:07d}{'' if state['judged'] else '-unjudged'}.pt"  # a half-done save harms no other
    storage.write_bytes(storage.join(folder, name), data)
    about = {**{key: state[key] for key in ("step", "best_step", "judged")}, "position": state["course"]["position"]}
    entry = {**about, "file": name, "sha256": storage.digest_bytes(data)}
    storage.write_json(storage.join(folder, LATEST), entry)
    if before and before["file"] != name:
        storage.remove_tree(storage.join(folder, before["file"]))


def load(folder: str) -> dict[str, Any] | None:
    """The latest checkpoint, or None; PerfuseError when its bytes are not those that were written."""
    import torch

    entry = _latest(folder)
    if entry is None:
        return None
    data = storage.read_bytes(storage.join(folder, entry["file"]))
    if storage.digest_bytes(data) != entry["sha256"]:
        raise PerfuseError(f"Checkpoint {folder}/{entry['file']} is damaged. Remove {folder} to train anew.")
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def latest_step(folder: str) -> int:
    """Steps that the latest checkpoint has behind it; 0 where there is none."""
    entry = _latest(folder)
    return int(entry["step"]) if entry else 0


def has_reached(folder: str, position: int) -> bool:
    """True when the latest checkpoint is so far in the schedule, and has been validated there."""
    entry = _latest(folder)
    return entry is not None and entry["position"] >= position and entry.get("judged", True)


def kept_steps(folder: str) -> tuple[int, int] | None:
    """The steps whose weights the latest checkpoint holds: its own, and the best before; None where there is none."""
    entry = _latest(folder)
    return (int(entry["step"]), int(entry["best_step"])) if entry else None


def _latest(folder: str) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = storage.read_json(storage.join(folder, LATEST))
    except FileNotFoundError:
        return None
    return entry

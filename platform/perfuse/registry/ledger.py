"""The ledger: one MLflow run a decision, each holding the digest of the one before, so that tampering shows."""

import getpass
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from perfuse import tracking
from perfuse.contract import Frozen
from perfuse.registry import bundles
from perfuse.storage import digest_json

EXPERIMENT = "perfuse-ledger"
START = "0" * 64


class Entry(Frozen):
    """One decision."""

    index: int
    model: str
    action: Literal["promote", "refuse", "rollback"]
    version: str
    champion_before: str | None
    reason: str
    scores: dict[str, float]
    """Surface dice by scan."""
    who: str
    when: str
    previous: str
    """Digest of the entry before."""

    def digest(self) -> str:
        """Identity of this entry and, through `previous`, of all before it."""
        return digest_json(self.model_dump(mode="json"))


def entries(model: str) -> list[Entry]:
    """All entries of a model, oldest first."""
    server = tracking.client()
    with tracking.answering():
        experiment = tracking.experiment_id(EXPERIMENT)
        runs: list[Any] = list(server.search_runs([experiment], f"tags.model = '{model}'", max_results=5000))
    found = [Entry.model_validate_json(run.data.tags["entry"]) for run in runs]
    return sorted(found, key=lambda e: e.index)


def append(
    model: str,
    action: Literal["promote", "refuse", "rollback"],
    version: str,
    *,
    before: str | None,
    reason: str,
    scores: dict[str, float],
) -> Entry:
    """Write the next entry of a model's ledger."""
    known = entries(model)
    entry = Entry(
        index=len(known),
        model=model,
        action=action,
        version=version,
        champion_before=before,
        reason=reason,
        scores=scores,
        who=getpass.getuser(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        previous=known[-1].digest() if known else START,
    )
    server = tracking.client()
    with tracking.answering():
        run = server.create_run(
            tracking.experiment_id(EXPERIMENT),
            run_name=f"{model} {entry.index}: {action} {version}",
            tags={"model": model, "entry": entry.model_dump_json(), "digest": entry.digest()},
        )
        server.set_terminated(run.info.run_id)
    return entry


def broken_at(chain: Sequence[Entry]) -> int | None:
    """Index of the first entry that does not follow from the one before; None for a whole chain."""
    previous = START
    for index, entry in enumerate(chain):
        if entry.index != index or entry.previous != previous:
            return index
        previous = entry.digest()
    return None


def champions(chain: Sequence[Entry]) -> list[str]:
    """The versions that were champion and were not rolled back, oldest first."""
    stack: list[str] = []
    for entry in chain:
        if entry.action == "promote":
            stack.append(entry.version)
        elif entry.action == "rollback" and stack:
            stack.pop()
    return stack


def history(model: str) -> dict[str, Any]:
    """The ledger of a model, whether its chain is whole, and whether the alias was moved behind its back."""
    now = bundles.champion(model)
    chain = entries(model)
    stack = champions(chain)
    expected = stack[-1] if stack else None
    return {
        "model": model,
        "champion": now,
        "entries": [e.model_dump(mode="json") for e in chain],
        "broken_at": broken_at(chain),
        "moved_behind_ledger": now != expected,
        "ledger_champion": expected,
    }

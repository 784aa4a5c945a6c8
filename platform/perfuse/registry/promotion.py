"""Moving the champion, with a reason and an entry in the ledger."""

from perfuse.contract import of_class
from perfuse.errors import RegistryError
from perfuse.registry import bundles, ledger
from perfuse.registry.policy import Decision, Policy, decide
from perfuse.registry.scores import scores_of


def promote(name: str, version: str, policy: Policy | None = None) -> Decision:
    """Make a version champion if the policy agrees; accepted and refused decisions are both entered in the ledger.

    Raises RegistryError when it is refused, with the commands that make missing scores.
    """
    bundles.version_of(f"models:/{name}/{version}")
    before = bundles.champion(name)
    if before == version:
        return Decision(accepted=True, reason="it is champion already")
    mine = scores_of(name, version)
    decision = decide(mine, scores_of(name, before) if before else None, policy or Policy())
    scores = {s.scan_url: s.surface_dice for s in mine.values()}
    if decision.accepted:
        bundles.set_champion(name, version)
    ledger.append(
        name,
        "promote" if decision.accepted else "refuse",
        version,
        before=before,
        reason=decision.reason,
        scores=scores,
    )
    if not decision.accepted:
        raise RegistryError(
            f"Version {version} of {name} is not promoted: {decision.reason}.{_commands(name, version, decision)}"
        )
    return decision


def _commands(name: str, version: str, decision: Decision) -> str:
    places = [(s.scan_url, s.truth, s.class_name) for s in decision.missing]
    if not places and "no scores" in decision.reason:
        places = [("SCAN_URL", "human", "")]
    lines = [
        f"\n  perfuse predict {url} --model models:/{name}/{version} --output {name}-v{version}"
        f"\n  perfuse evaluate {url} --prediction {of_class(f'{name}-v{version}', class_name)} --truth {truth}"
        for url, truth, class_name in places
    ]
    return " These commands make the scores:" + "".join(lines) if lines else ""


def rollback(name: str) -> str:
    """Make the champion before this one champion again; returns its version. RegistryError when there is none."""
    now = bundles.champion(name)
    stack = ledger.champions(ledger.entries(name))
    if len(stack) < 2:
        raise RegistryError(f"Model {name!r} has no earlier champion to go back to. See: perfuse history {name}")
    bundles.set_champion(name, stack[-2])
    ledger.append(name, "rollback", stack[-2], before=now, reason=f"back from {now}", scores={})
    return stack[-2]

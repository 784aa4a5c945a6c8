"""Bundles by name and version, promotion with a ledger: the one door to the MLflow registry."""

from perfuse.registry.bundles import champion, donors_of, load_bundle, load_model, register, set_champion, version_of
from perfuse.registry.ledger import Entry, history
from perfuse.registry.policy import Policy, Score, decide
from perfuse.registry.promotion import promote, rollback
from perfuse.registry.scores import record_evaluation, record_scores, scores_of

__all__ = [
    "Entry",
    "Policy",
    "Score",
    "champion",
    "decide",
    "donors_of",
    "history",
    "load_bundle",
    "load_model",
    "promote",
    "record_evaluation",
    "record_scores",
    "register",
    "rollback",
    "scores_of",
    "set_champion",
    "version_of",
]

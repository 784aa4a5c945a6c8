"""Bundles in and out of the registry."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfuse import __version__, tracking
from perfuse.bundle import Bundle, Ensemble, Model
from perfuse.console import say
from perfuse.contract import read_by
from perfuse.errors import RegistryError

CHAMPION, CHALLENGER = "champion", "challenger"
ARTIFACT = "bundle"


def register(bundle: Bundle, name: str, run_id: str) -> str:
    """Log a bundle as an MLflow model of a run, register it as the next version, and make that the challenger.

    Returns its URI, models:/NAME/VERSION. RegistryError for a name that MLflow does not allow.
    """
    import mlflow

    if not re.fullmatch(r"[\w. -]+", name):
        raise RegistryError(f"A model's name holds letters, digits, '_', '-', '.' and spaces; got {name!r}.")
    server = tracking.client()
    with tempfile.TemporaryDirectory() as folder, tracking.answering():
        bundle.save(Path(folder) / ARTIFACT)
        with mlflow.start_run(run_id=run_id, log_system_metrics=False):
            logged = mlflow.pyfunc.log_model(
                name=ARTIFACT,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={ARTIFACT: str(Path(folder) / ARTIFACT)},
                pip_requirements=[f"perfuse=={__version__}"],
            )
        version = _next_version(server, name, logged.model_id, run_id)
        server.set_model_version_tag(name, version, "bundle_digest", bundle.digest())
        server.set_model_version_tag(name, version, "forward_digest", bundle.forward_digest())
        server.set_registered_model_alias(name, CHALLENGER, version)
    return f"models:/{name}/{version}"


def _next_version(server: Any, name: str, model_id: str, run_id: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        server.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    return str(server.create_model_version(name, source, run_id, model_id=model_id).version)


def version_of(uri: str) -> tuple[str, str]:
    """Name and version of models:/NAME/VERSION or models:/NAME@ALIAS.

    Raises RegistryError, naming what there is, when there is no such model, version or alias.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([\w-]+))", uri)
    if match is None:
        raise RegistryError(
            f"{uri!r} names no model. Say models:/NAME@champion, models:/NAME/3 or runs:/RUN_ID/{ARTIFACT}."
        )
    name, version, alias = match.groups()
    versions, aliases = _known(name)
    if alias is not None:
        if alias not in aliases:
            there = ", ".join(sorted(aliases)) or "none"
            raise RegistryError(
                f"Model {name!r} has no alias {alias!r}; its aliases: {there}. See: perfuse history {name}"
            )
        return name, aliases[alias]
    if version not in versions:
        raise RegistryError(f"Model {name!r} has no version {version}; its versions: {', '.join(versions)}.")
    return name, version


def _known(name: str) -> tuple[list[str], dict[str, str]]:
    from mlflow.exceptions import MlflowException

    server = tracking.client()
    with tracking.answering():
        try:
            model = server.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            there = ", ".join(m.name for m in server.search_registered_models()) or "none"
            raise RegistryError(
                f"There is no model {name!r}. Models: {there}. `perfuse train … --name` makes one."
            ) from error
        versions = sorted((str(v.version) for v in server.search_model_versions(f"name = '{name}'")), key=int)
    return versions, {k: str(v) for k, v in model.aliases.items()}


def load_bundle(uri: str) -> Bundle:
    """A bundle by models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/bundle; its `uri` names the version."""
    import mlflow
    from mlflow.exceptions import MlflowException

    tracking.client()
    if uri.startswith("models:/"):
        uri = "models:/{}/{}".format(*version_of(uri))
    elif not uri.startswith("runs:/"):
        version_of(uri)
    with tempfile.TemporaryDirectory() as folder, tracking.answering():
        try:
            path = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except (MlflowException, OSError) as error:
            if tracking.is_away(error):
                raise
            raise RegistryError(f"{uri} holds no bundle: {error}") from error
        found = sorted(path.rglob("contract.json"))
        if not found:
            raise RegistryError(f"{uri} is a model, but no perfuse bundle: it has no contract.json.")
        return Bundle.load(found[0].parent, uri)


def donors_of(uri: str) -> dict[str, str]:
    """`Bundle.donors` of a model; says so when the model, an imported one, does not know what it was trained on."""
    bundle = load_bundle(uri)
    if "donors" not in bundle.lineage:
        say(f"{bundle.uri} does not say what it was trained on: whether a donor judges itself by it cannot be checked.")
    return bundle.donors


def load_model(uris: Sequence[str]) -> Model:
    """The bundle of one URI; of several their ensemble, read with the mean of their thresholds until one is chosen for it.

    Raises RegistryError when they tell different classes apart.
    """
    bundles = tuple(load_bundle(uri) for uri in uris)
    if len(bundles) == 1:
        return bundles[0]
    if len({bundle.class_names for bundle in bundles}) > 1:
        said = "; ".join(f"{bundle.uri}: {', '.join(bundle.class_names) or 'one class'}" for bundle in bundles)
        raise RegistryError(f"Models of different classes cannot answer as one ({said}). Choose models of the same.")
    means = {
        name: round(sum(read_by(bundle.threshold, name) for bundle in bundles) / len(bundles))
        for name in bundles[0].class_names
    }
    return Ensemble(bundles, means.get("", means))


def champion(name: str) -> str | None:
    """The version that is champion; None before the first. RegistryError when there is no such model."""
    return _known(name)[1].get(CHAMPION)


def set_champion(name: str, version: str) -> None:
    """Move the alias."""
    with tracking.answering():
        tracking.client().set_registered_model_alias(name, CHAMPION, version)


def tags(name: str, version: str) -> dict[str, str]:
    """A version's tags."""
    with tracking.answering():
        found: Any = tracking.client().get_model_version(name, version)
    return dict(found.tags)


def run_of(uri: str) -> str:
    """The MLflow run that made a version."""
    with tracking.answering():
        found: Any = tracking.client().get_model_version(*version_of(uri))
    return str(found.run_id)


def set_tag(name: str, version: str, key: str, value: str) -> None:
    """Set one tag of a version."""
    with tracking.answering():
        tracking.client().set_model_version_tag(name, version, key, value)


def tagged(name: str, key: str, value: str) -> str | None:
    """The URI of the newest version whose tag `key` has this value; None where there is none, or no such model."""
    with tracking.answering():
        versions = tracking.client().search_model_versions(f"name = '{name}'")
        found = [int(v.version) for v in versions if v.tags.get(key) == value]
    return f"models:/{name}/{max(found)}" if found else None

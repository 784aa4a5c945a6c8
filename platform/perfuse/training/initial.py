"""Weights to start from: of another training in the same storage, or of a registered model."""

from typing import TYPE_CHECKING

from perfuse import storage
from perfuse.errors import RecipeError
from perfuse.training import checkpoints

if TYPE_CHECKING:
    from torch import Tensor

    from perfuse.training.job import TrainingJob


def pinned(init_from: str, storage_url: str) -> str:
    """What `init_from` names today, in words that will always name the same weights: models:/NAME/VERSION or RUN@STEP.

    Raises RecipeError when there is no such training or step, RegistryError when there is no such model.
    """
    if init_from.startswith("models:/"):
        from perfuse.registry import version_of

        return "models:/{}/{}".format(*version_of(init_from))
    if init_from.startswith("runs:/"):
        return init_from
    run, _, step = init_from.partition("@")
    at, best = _steps(storage.join(storage_url, run), init_from)
    wanted = step or str(best)
    if wanted not in {str(at), str(best)}:
        raise RecipeError(
            f"init_from = {init_from}: that training keeps steps {best} (the best) and {at} (the latest)."
        )
    return f"{run}@{wanted}"


def initial_weights(job: "TrainingJob") -> "dict[str, Tensor]":
    """The weights that a job's recipe names, pinned."""
    source = str(job.recipe.init_from)
    if source.startswith(("models:/", "runs:/")):
        from perfuse.registry import load_bundle

        return load_bundle(source).weights
    run, _, step = source.partition("@")
    folder = storage.join(job.folder.rsplit("/", 1)[0], run)
    state = checkpoints.load(folder)
    kept = {} if state is None else {state["step"]: state["averaged"], state["best_step"]: state["best"]}
    if int(step) not in kept:
        raise RecipeError(f"init_from = {source}: that step is not kept any more. Run the same command again.")
    weights: dict[str, Tensor] = kept[int(step)]
    return weights


def _steps(folder: str, said: str) -> tuple[int, int]:
    """The latest step of a training, and that of its best weights."""
    steps = checkpoints.kept_steps(folder)
    if steps is None:
        raise RecipeError(
            f"init_from = {said}: there is no training in {folder}. Name one by the folder of its checkpoints, RUN or "
            "RUN@STEP, or a model by models:/NAME/VERSION."
        )
    return steps

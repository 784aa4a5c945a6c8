"""A training from recipe to challenger: plan → learn → predict the validation scans → tune → register → score.

Every stage is skipped when it is done already, so the same command after `kill -9` goes on where it stopped, and after
success does nothing.
"""

from collections.abc import Callable
from dataclasses import replace

from perfuse import settings, storage
from perfuse.bundle import Bundle
from perfuse.catalog import LabelInfo, Scan
from perfuse.console import progress, say
from perfuse.errors import RecipeError
from perfuse.labels import check_name
from perfuse.locks import writing
from perfuse.recipes import Recipe
from perfuse.registry import record_evaluation, register
from perfuse.registry.bundles import set_tag, tagged, version_of
from perfuse.scoring import evaluate, tune
from perfuse.training import TrainingJob, finished_bundle, is_finished, plan_job
from perfuse.training.checkpoints import latest_step
from perfuse_jobs.run_log import RunLog
from perfuse_jobs.session import check_shared

TRAINING_KEY = "training_key"
"""Tag of a version, set when all is done: the digest of the recipe and data that it was trained by."""

Predict = Callable[[str, Bundle, str], LabelInfo]


def train(recipe: Recipe, data_url: str, name: str, *, workers: int = 1, local: bool = False) -> str:
    """Train, choose the threshold on the validation scans, and register as challenger of `name`.

    workers: ranks of Ray Train. local: in this process, without Ray; the samples are the same. Returns models:/NAME/VERSION.
    Raises RecipeError or ScanError for what cannot be trained, BusyError when the same training runs elsewhere.
    """
    check_name(name)
    if not local:
        check_shared("PERFUSE_STORAGE", "a URL for checkpoints that all nodes reach (s3://…)")
        check_shared("MLFLOW_TRACKING_URI", "the MLflow server")
    job = plan_job(recipe, data_url, settings.storage_url())
    _one_label(job)
    known = tagged(name, TRAINING_KEY, job.key) if is_finished(job) else None
    if known is not None:
        say(f"{known} was trained by this recipe on this data: nothing to do.")
        return known
    with writing(job.folder, "training"):
        return _train(job, name, workers, local=local)


def _one_label(job: TrainingJob) -> str:
    """The label that all validation scans are scored by, for one threshold is chosen on all of them."""
    labels = sorted({source.label for source in job.validation})
    if len(labels) > 1:
        raise RecipeError(
            f"The validation scans would be scored by different labels ({', '.join(labels)}). Name one that all have "
            "first: --set labels=…"
        )
    return labels[0]


def _train(job: TrainingJob, name: str, workers: int, *, local: bool) -> str:
    with RunLog(job, name) as log:
        if not is_finished(job):
            _learn(job, log, workers, local=local)
        return _publish(job, name, log, _predictor(workers, local=local))


def _learn(job: TrainingJob, log: RunLog, workers: int, *, local: bool) -> None:
    done = latest_step(job.folder)
    if done:
        say(f"Going on at step {done}, from the checkpoint in {job.folder}")
    with progress(f"training {job.recipe.name}, steps", job.recipe.steps) as advance:
        advance.to(done, job.recipe.steps)

        def report(step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
            advance.to(step, job.recipe.steps)
            advance(0, note=_pace(metrics))
            if "val_surface_dice" in metrics:
                say(f"step {step}: {_validation(metrics)}")
            log(step, metrics, pictures)

        try:
            if local:
                from perfuse.training.local import train_local

                train_local(job, report)
            else:
                from perfuse_jobs.distributed import train_on_ray

                train_on_ray(job, report, workers=workers)
        except KeyboardInterrupt:
            say(f"Stopped. The same command goes on at step {latest_step(job.folder)}; checkpoints: {job.folder}")
            raise
    log.flush()


def _pace(metrics: dict[str, float]) -> str:
    return (
        f"loss {metrics['loss']:.3f}, {metrics['steps_per_s']:.3g} steps/s, {metrics['crops_per_s']:.3g} crops/s, "
        f"waits for data {metrics['wait_share']:.0%}"
    )


def _validation(metrics: dict[str, float]) -> str:
    return (
        f"surface dice {metrics['val_surface_dice']:.4f}, Dice {metrics['val_dice']:.4f} on the validation scans, at "
        f"threshold {metrics['val_threshold']:.2f}"
    )


def _predictor(actors: int, *, local: bool) -> Predict:
    if local:
        from perfuse.inference import predict_local

        return predict_local
    from perfuse_jobs.predict import predict_ray

    return lambda scan_url, bundle, output: predict_ray(scan_url, bundle, output, actors=actors)


def _publish(job: TrainingJob, name: str, log: RunLog, predict: Predict) -> str:
    """Choose the threshold, register, and note the scores that promotion asks for; the tag says that all is done."""
    bundle, output = finished_bundle(job), f"{name}-selection"
    for source in job.validation:
        predict(source.url, bundle, output)
    curve = tune([Scan.open(source.url) for source in job.validation], output, _one_label(job))
    bundle = bundle.with_threshold(curve.chosen)
    log.threshold(curve)
    uri = register(bundle, name, log.run().id)
    scores = []
    for source in job.validation:
        predict(source.url, replace(bundle, uri=uri), output)  # which only renews the label's reference to its model
        scores.append(evaluate(Scan.open(source.url), output, source.label))
        record_evaluation(scores[-1], kind="validation")
    report = log.report(uri, curve, scores)
    set_tag(*version_of(uri), TRAINING_KEY, job.key)
    say(
        f"Registered {uri} as challenger, threshold {curve.chosen / 255:.3f}. Checkpoints: {storage.normal(job.folder)}"
        f"\nReport: {storage.normal(report)}"
    )
    return uri

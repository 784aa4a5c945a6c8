"""A training from recipe to challenger: plan → learn → predict the validation scans → tune → register → score.

Every stage is skipped when it is done already, so the same command after `kill -9` goes on where it stopped, and after
success does nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from perfuse import settings, storage
from perfuse.catalog import Scan
from perfuse.console import progress, say
from perfuse.contract import Threshold, of_class, said
from perfuse.errors import RecipeError
from perfuse.labels import check_name
from perfuse.locks import writing
from perfuse.metrics import Curve
from perfuse.pseudolabels import Predict
from perfuse.recipes import Recipe
from perfuse.registry import record_evaluation, register
from perfuse.registry.bundles import set_tag, tagged, version_of
from perfuse.scoring import evaluate, tune
from perfuse.training import TrainingJob, finished_bundle, is_finished, plan_job
from perfuse.training.checkpoints import latest_step
from perfuse_jobs.predict import predictor
from perfuse_jobs.run_log import RunLog
from perfuse_jobs.session import check_shared
from perfuse_jobs.workers import ONE, Workers

TRAINING_KEY = "training_key"
"""Tag of a version, set when all is done: the digest of the recipe and data that it was trained by."""


@dataclass(frozen=True)
class Part:
    """What a training is told when it is a stage of a campaign."""

    parent: str
    """MLflow run of the campaign."""
    threshold: Threshold | None = None
    """Inherited, and no donor selects; None: the validation donors select checkpoint and threshold."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """By URL the label to take of a scan, as planned."""


def train(
    recipe: Recipe,
    data_url: str,
    name: str,
    *,
    workers: Workers = ONE,
    local: bool = False,
    resume: bool = False,
    part: Part | None = None,
) -> str:
    """Train, choose the threshold on the validation scans, and register as challenger of `name`.

    workers: ranks of Ray Train. local: in this process, without Ray; the samples are the same. resume: begin no new training.
    Returns models:/NAME/VERSION.
    Raises RecipeError or ScanError for what cannot be trained, BusyError when the same training runs elsewhere.
    """
    check_name(name)
    if not local:
        check_shared("PERFUSE_STORAGE", "a URL for checkpoints that all nodes reach (s3://…)")
        check_shared("MLFLOW_TRACKING_URI", "the MLflow server")
    inherited = part.threshold if part else None
    taken = part.labels if part else None
    job = plan_job(recipe, data_url, settings.storage_url(), selects=inherited is None, taken=taken)
    _truths(job)
    known = tagged(name, TRAINING_KEY, _key(job, inherited)) if is_finished(job) else None
    if known is not None:
        say(f"{known} was trained by this recipe on this data: nothing to do.")
        return known
    if resume and not latest_step(job.folder):
        raise RecipeError(
            f"There is nothing to resume: {job.folder} holds no checkpoint. A training goes on by the same recipe, settings and "
            "data; without --resume a new one begins."
        )
    with writing(job.folder, "training"), RunLog(job, name, parent=part.parent if part else None) as log:
        if not is_finished(job):
            _learn(job, log, workers, local=local)
        log.flush()
        return _publish(job, name, log, predictor(workers, local=local), inherited)


def _key(job: TrainingJob, inherited: Threshold | None) -> str:
    return job.key if inherited is None else storage.digest_json([job.key, inherited])


def _truths(job: TrainingJob) -> dict[str, str]:
    """By class the label that all validation scans are scored by, for one threshold is chosen on all; empty where none selects."""
    truths: dict[str, str] = {}
    for source in job.validation:
        if truths.setdefault(source.class_name, source.label) != source.label:
            labels = ", ".join(sorted({s.label for s in job.validation if s.class_name == source.class_name}))
            raise RecipeError(
                f"The validation scans would be scored by different labels ({labels}). Name one that all have "
                "first: --set labels=…"
            )
    return truths


def _learn(job: TrainingJob, log: RunLog, workers: Workers, *, local: bool) -> None:
    done = latest_step(job.folder)
    if done:
        say(f"Going on at step {done}, from the checkpoint in {job.folder}")
    with progress(f"training {job.recipe.name}, steps", job.recipe.steps) as advance:
        advance.to(done, job.recipe.steps)

        def report(step: int, metrics: dict[str, float], pictures: dict[str, bytes]) -> None:
            advance.to(step, job.recipe.steps)
            if "loss" in metrics:  # not so where a validation is made up for
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
    if job.recipe.converged is not None:
        say(_end(latest_step(job.folder), job.recipe))


def _end(steps: int, recipe: Recipe) -> str:
    if steps < recipe.steps:
        return f"The loss has converged: {steps} steps were taken, of {recipe.steps} at most."
    return f"All {steps} steps were taken: the loss has not surely stood still. More steps may be worth it (--set steps=…)."


def _pace(metrics: dict[str, float]) -> str:
    return (
        f"loss {metrics['loss']:.3f}, {metrics['steps_per_s']:.3g} steps/s, {metrics['crops_per_s']:.3g} crops/s, "
        f"waits for data {metrics['wait_share']:.0%}"
    )


def _validation(metrics: dict[str, float]) -> str:
    classes = [name.removeprefix("val_threshold.") for name in metrics if name.startswith("val_threshold.")]
    each = [
        f"{name} {metrics[f'val_surface_dice.{name}']:.4f} at threshold {metrics[f'val_threshold.{name}']:.2f}"
        for name in classes
    ]
    where = f"surface dice of {', '.join(each)}" if each else f"at threshold {metrics['val_threshold']:.2f}"
    return f"surface dice {metrics['val_surface_dice']:.4f}, Dice {metrics['val_dice']:.4f} on the validation scans, {where}"


def _publish(job: TrainingJob, name: str, log: RunLog, predict: Predict, inherited: Threshold | None) -> str:
    """Choose the threshold of each class, register, and note the scores that promotion asks for; the tag says that all is done."""
    bundle, output = finished_bundle(job), f"{name}-selection"
    urls = dict.fromkeys(source.url for source in job.validation)
    curves: dict[str, Curve] = {}
    if urls:
        for url in urls:
            predict(url, bundle, output)
        curves = {class_name: _tuned(job, output, class_name, truth) for class_name, truth in _truths(job).items()}
        chosen = {class_name: curve.chosen for class_name, curve in curves.items()}
        bundle = bundle.with_threshold(chosen.get("", chosen))
        log.thresholds(curves)
    elif inherited is not None:
        bundle = bundle.with_threshold(inherited)
    uri = register(bundle, name, log.run().id)
    for url in urls:
        predict(url, replace(bundle, uri=uri), output)  # which only renews the labels' reference to their model
    scores = []
    for source in job.validation:
        scores.append(evaluate(Scan.open(source.url), of_class(output, source.class_name), source.label))
        if source.box is None:  # a score inside a training scan would be taken for one on a donor of its own
            record_evaluation(scores[-1], kind="validation")
    report = log.report(uri, curves, scores)
    set_tag(*version_of(uri), TRAINING_KEY, _key(job, inherited))
    say(
        f"Registered {uri} as challenger, {said(bundle.threshold)}. Checkpoints: {storage.normal(job.folder)}"
        f"\nReport: {storage.normal(report)}"
    )
    return uri


def _tuned(job: TrainingJob, output: str, class_name: str, truth: str) -> Curve:
    """The scores of a class at all thresholds, on all validation scans together."""
    sources = [source for source in job.validation if source.class_name == class_name]
    scans = [Scan.open(source.url) for source in sources]
    within = [source.extent(scan.shape_zyx) for source, scan in zip(sources, scans, strict=True)]
    return tune(scans, of_class(output, class_name), truth, within)

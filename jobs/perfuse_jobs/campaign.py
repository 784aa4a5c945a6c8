"""Runs a campaign: each stage once, and what is done is skipped; a stage that was killed goes on as its verb does."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from perfuse import storage
from perfuse.bundle import Ensemble as Several
from perfuse.bundle import Model
from perfuse.campaigns.planning import Plan, Planned
from perfuse.campaigns.schema import Ensemble, Evaluate, Predict, PseudoLabel, Train
from perfuse.catalog import LabelInfo, Scan
from perfuse.console import say
from perfuse.errors import CampaignError, ServerError
from perfuse.inference.options import fused_otherwise
from perfuse.locks import writing
from perfuse.outages import outlast
from perfuse.pseudolabels import human_label, pseudolabel
from perfuse.registry import load_model, record_evaluation, record_scores, scores_of
from perfuse.registry.bundles import run_of, version_of
from perfuse.scoring import evaluate, tune
from perfuse.tracking import Run
from perfuse_jobs.campaign_results import Result, conclude, done, keep, place_of, run_at, show_beneath
from perfuse_jobs.predict import predictor
from perfuse_jobs.session import check_shared
from perfuse_jobs.train import Part, train
from perfuse_jobs.workers import ONE, Workers

OUTAGE = (5.0, 20.0, 45.0, 120.0, 300.0, 600.0, 600.0)
"""Seconds that a server which goes away between two stages, or within one, is given, again and again: the stage goes on then."""


def run(plan: Plan, *, workers: Workers = ONE, local: bool = False) -> list[Result]:
    """Run a campaign's stages in order; what is done is skipped, and what was begun goes on.

    workers: processes of Ray. local: in this process, without Ray. Raises BusyError when the same campaign runs elsewhere.
    """
    if not local:
        check_shared("PERFUSE_STORAGE", "a URL for checkpoints that all nodes reach (s3://…)")
        check_shared("MLFLOW_TRACKING_URI", "the MLflow server")
    with writing(place_of(plan.key), "campaign"):
        return _Runner(plan, workers, local=local).run()


class _Runner:
    """Runs stages, and holds what those before have made."""

    def __init__(self, plan: Plan, workers: Workers, *, local: bool) -> None:
        self.plan, self.workers, self.local = plan, workers, local
        self.results: dict[str, Result] = {}
        self._predictor = predictor(workers, local=local)

    def run(self) -> list[Result]:
        plan, place = self.plan, storage.join(place_of(self.plan.key), "run.json")
        self.parent = run_at(place, plan.name, {"perfuse.key": plan.key, "perfuse.campaign": plan.name})
        try:
            for number, planned in enumerate(plan.stages, 1):
                title = f"stage {number} of {len(plan.stages)}, {planned.stage.kind} {planned.stage.name}"
                outlast(partial(self._stage, planned, title), OUTAGE)
            outlast(self._conclude, OUTAGE)
        except BaseException as error:
            _end(self.parent, error)
            raise
        return list(self.results.values())

    def _conclude(self) -> None:
        self.parent.json("campaign.json", self.plan.model_dump(mode="json"))
        self.parent.json("results.json", [result.model_dump(mode="json") for result in self.results.values()])
        self.parent.json("lineage.json", self._lineage())
        self.parent.finish()

    def _lineage(self) -> dict[str, Any]:
        """Of every soft label: what made it of what, by scan and name."""
        return {
            f"{url}/labels/{info.name}": {"stage": result.stage, "digest": info.digest, **info.lineage}
            for result in self.results.values()
            for url, info in result.labels.items()
        }

    def _stage(self, planned: Planned, title: str) -> None:
        result = done(planned)
        if result is not None:
            say(f"{title}: done already")
        else:
            say(title)
            result = self._train(planned, planned.stage) if isinstance(planned.stage, Train) else self._in_run(planned)
            keep(result)
        show_beneath(self.parent, result, self.plan)
        self.results[planned.stage.name] = result

    def _in_run(self, planned: Planned) -> Result:
        """A stage that is no training, in an MLflow run of its own."""
        stage = planned.stage
        tags = {"perfuse.key": planned.key, "perfuse.stage": stage.kind}
        run = run_at(place_of(planned.key) + ".run.json", f"{self.plan.name}-{stage.name}", tags, self.parent.id)
        try:
            result = _DO[stage.kind](self, planned, stage).model_copy(update={"run_id": run.id})
        except BaseException as error:
            _end(run, error)
            raise
        conclude(run, result)
        return result

    def _model(self, names: tuple[str, ...]) -> Model:
        """Of stages and URIs: one as it is, several as one; read with the threshold that the stage has chosen."""
        known = [self.results[name] for name in names if name in self.results]
        uris = [uri for name in names for uri in (self.results[name].models if name in self.results else (name,))]
        model = load_model(uris)
        if model.class_names != ("",):
            raise CampaignError(f"{model.uri} tells {', '.join(model.class_names)} apart; campaigns are of one class.")
        if len(names) > 1 or not known:
            return model
        model = replace(model, fusion=known[0].fusion) if isinstance(model, Several) else model
        return model if known[0].threshold is None else model.with_threshold(known[0].threshold)

    def predict(self, url: str, model: Model, output: str) -> LabelInfo:
        """Write a model's soft label of a scan."""
        (info,) = self._predictor(url, model, output)
        return info

    def _train(self, planned: Planned, stage: Train) -> Result:
        if planned.recipe is None:
            raise CampaignError(f"Stage {stage.name} has no recipe.")
        start = stage.init_from
        if start is not None and start in self.results:
            (start,) = self.results[start].models
        inherited = self._model((stage.threshold_from,)).threshold if stage.threshold_from else None
        uri = train(
            planned.recipe.model_copy(update={"init_from": start}),
            self.plan.data_url,
            f"{self.plan.name}-{stage.name}",
            workers=self.workers,
            local=self.local,
            part=Part(parent=self.parent.id, threshold=inherited, labels=planned.labels),
        )
        return Result(
            stage=stage.name,
            kind=stage.kind,
            key=planned.key,
            run_id=run_of(uri),
            models=(uri,),
            threshold=load_model([uri]).threshold,
            scores=(*self._scores_on_left_out(uri, planned, stage), *self._scores_of_siblings(uri, stage)),
        )

    def _scores_on_left_out(self, uri: str, planned: Planned, stage: Train) -> Iterator[dict[str, Any]]:
        """Predict and score the donors that a sibling left out, at the threshold that it has inherited."""
        for site in planned.judges if stage.scored_by else ():
            self.predict(site.url, load_model([uri]), planned.output)
            scan = Scan.open(site.url)
            score = evaluate(scan, planned.output, str(human_label(scan)))
            record_evaluation(score, kind="sibling")
            yield asdict(score) | {"kind": "sibling"}

    def _scores_of_siblings(self, uri: str, stage: Train) -> tuple[dict[str, Any], ...]:
        """Note with a model that learnt from everything what its siblings reached on the donors that they left out."""
        theirs = [
            score.model_copy(update={"kind": "sibling"})
            for name in stage.siblings
            for score in scores_of(*version_of(self.results[name].models[0])).values()
            if score.kind in ("validation", "sibling")
        ]
        for score in theirs:
            record_scores(uri, score)
        return tuple(score.model_dump(mode="json") for score in theirs)

    def _ensemble(self, planned: Planned, stage: Ensemble) -> Result:
        if stage.threshold_from is not None:
            return self._inheriting(planned, stage, stage.threshold_from)
        model, scans = self._together(stage), [Scan.open(site.url) for site in planned.scans]
        truth = str(human_label(scans[0]))
        labels = {scan.url: self.predict(scan.url, model, planned.output) for scan in scans}
        threshold = tune([Scan.open(url) for url in labels], planned.output, truth).chosen
        labels = {url: self.predict(url, model.with_threshold(threshold), planned.output) for url in labels}
        scores = [asdict(evaluate(Scan.open(url), planned.output, truth)) for url in labels]
        return _result(planned, **_answering(model), threshold=threshold, labels=labels, scores=tuple(scores))

    def _together(self, stage: Ensemble) -> Model:
        return fused_otherwise(self._model(stage.models), stage.average, stage.weights, stage.temperatures)

    def _inheriting(self, planned: Planned, stage: Ensemble, threshold_from: str) -> Result:
        """Members that have learnt from everything: threshold and scores are those of earlier ensembles."""
        scores = [score | {"kind": "sibling"} for name in stage.siblings for score in self.results[name].scores]
        threshold = self._model((threshold_from,)).threshold
        return _result(planned, **_answering(self._together(stage)), threshold=threshold, scores=tuple(scores))

    def _predict(self, planned: Planned, stage: Predict) -> Result:
        model = self._model((stage.model,))
        return _result(planned, labels={s.url: self.predict(s.url, model, planned.output) for s in planned.scans})

    def _pseudolabel(self, planned: Planned, stage: PseudoLabel) -> Result:
        model = self._model((stage.model,))
        return _result(
            planned,
            labels={
                s.url: pseudolabel(
                    s.url, model, planned.output, self._predictor, cut=stage.cut, keep_edges=stage.keep_edges
                )[0]
                for s in planned.scans
            },
        )

    def _evaluate(self, planned: Planned, stage: Evaluate) -> Result:
        model = self._model((stage.model,))
        labels = {s.url: self.predict(s.url, model, planned.output) for s in planned.scans}
        scores = [evaluate(Scan.open(url), planned.output, stage.truth) for url in labels]
        for score in scores:
            record_evaluation(score, kind="test")
        return _result(planned, labels=labels, scores=tuple(asdict(score) for score in scores))


def _end(run: Run, error: BaseException) -> None:
    with suppress(ServerError):  # the error that ended it is the one to tell
        run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")


def _answering(model: Model) -> dict[str, Any]:
    return {"models": tuple(member.uri for member in model.members), "fusion": model.fusion}


def _result(planned: Planned, **made: Any) -> Result:
    return Result(stage=planned.stage.name, kind=planned.stage.kind, key=planned.key, **made)


_DO: dict[str, Callable[[_Runner, Planned, Any], Result]] = {
    "tune": _Runner._ensemble,
    "ensemble": _Runner._ensemble,
    "predict": _Runner._predict,
    "pseudolabel": _Runner._pseudolabel,
    "evaluate": _Runner._evaluate,
}

"""Last stages, which learn from everything: their members, siblings, thresholds, and when they are refused."""

from collections import Counter

import pytest
import yaml

from perfuse.campaigns import load_campaign, plan_campaign
from perfuse.campaigns.cost import costs
from perfuse.campaigns.leakage import check
from perfuse.errors import CampaignError

TINY = ["recipe=quickstart", "recipe.network.encoder=tu-test_resnet", "recipe.network.decoder_channels=16,8,8,8,8"]
STANDSTILL = ["converged=0.01", "schedule=[{kind: constant, share: 1}]"]


@pytest.fixture(scope="module")
def scans(campaign_scans):
    return campaign_scans


def planned(scans, name="sennet_3rd", *settings, smoke=False):
    campaign = load_campaign(name, scans, settings, smoke=smoke)
    return plan_campaign(campaign, scans, "scans", donors_of=lambda uri: {"a": f"{uri} ← human of a"}, smoke=smoke)


def by_name(plan):
    return {p.stage.name: p for p in plan.stages}


def written(tmp_path, *stages, **more):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "quickstart", "settings": STANDSTILL, "stages": list(stages), **more}))
    return str(path)


def refused(scans, path, match, *settings):
    with pytest.raises(CampaignError, match=match):
        check(planned(scans, path, *settings))


def test_third_place_goes_from_scan_to_scan_and_ends_with_everything(scans):
    plan = planned(scans, "sennet_3rd", *TINY, "test=e", "members=se")
    check(plan)
    stages = by_name(plan)
    assert list(stages) == [
        *("dense", "dense-test", "labels-1", "round-1", "round-1-test", "labels-2", "round-2", "round-2-test"),
        *("all-without-a", "all-without-d", "all", "all-test"),
    ]
    trainings = {n: p.recipe for n, p in stages.items() if p.recipe}
    assert [r.train for r in trainings.values()] == [
        *(("a",), ("a", "b"), ("a", "b", "c")),
        *(("b", "c", "d"), ("a", "b", "c"), ("a", "b", "c", "d")),
    ]
    assert [r.validation for r in trainings.values()] == [("d",), ("d",), ("d",), (), (), ()]
    assert [r.holdout for r in trainings.values()] == [("e",)] * 3 + [("e", "a"), ("e", "d"), ("e",)]
    assert all(r.network.encoder == "tu-test_resnet" for r in trainings.values())
    assert [r.converged for r in trainings.values()] == [None, None, 0.01, 0.01, 0.01, 0.01]
    first, second = stages["labels-1"].output, stages["labels-2"].output
    assert trainings["round-2"].labels == (second, first, "human")
    assert stages["labels-2"].stage.cut == "coverage"
    assert set(stages["round-2"].donors) == {"a", "b", "c"}
    assert stages["round-2"].donors["b"] == "labels-1 of b"
    assert stages["round-1"].donors["a"] == "human of a"
    assert set(stages["all"].donors) == {"a", "b", "c", "d"}


def test_all_members_of_third_place_train_in_its_last_round_and_on_everything(scans):
    plan = planned(scans, "sennet_3rd", "test=e")
    check(plan)
    stages = by_name(plan)
    members = {"se": "sennet_3rd", "v2s": "sennet_3rd_v2s", "maxvit": "sennet_3rd_maxvit", "v2l": "sennet_3rd_v2l"}
    for name in ("round-2", "all"):
        assert {m: stages[f"{name}-{m}"].recipe.name for m in members} == members
        assert stages[name].stage.models == tuple(f"{name}-{m}" for m in members)
        assert stages[f"{name}-test"].stage.model == name
    assert {m: stages[f"labels-2-{m}"].stage.cut for m in members} == {
        "se": "coverage",
        "v2s": 0.1,
        "maxvit": 0.15,
        "v2l": 0.2,
    }
    assert len({stages[f"labels-2-{m}"].output for m in members}) == 4
    for member in members:
        assert stages[f"labels-2-{member}"].stage.model == "round-1"
        assert stages[f"round-2-{member}"].recipe.labels[0] == stages[f"labels-2-{member}"].output
        assert stages[f"all-{member}"].stage.init_from == f"round-2-{member}"
    assert [stages[f"round-2-{m}"].stage.init_from for m in members] == ["round-1", None, None, None]
    assert stages["round-2"].judges[0].specimen == "d"
    assert (stages["all"].judges, stages["all"].stage.threshold_from) == ((), "round-2")
    assert stages["all-se"].stage.siblings == ("all-se-without-a", "all-se-without-d")
    assert stages["all-v2l"].stage.siblings == ("round-2-v2l",)
    assert Counter(p.stage.kind for p in plan.stages)["train"] == 2 + 4 + 2 + 4


def test_a_smoke_campaign_trains_members_that_differ_and_no_more_than_eight_times(scans):
    few = [s for s in scans if s.info.specimen in "abde"]
    plan = planned(few, "sennet_3rd", "test=e", smoke=True)
    check(plan)
    trained = [p.stage.name for p in plan.stages if p.recipe]
    assert trained == [
        *("dense", "round-1-se", "round-1-v2l"),
        *("all-se-without-a", "all-se-without-d", "all-se", "all-v2l"),
    ]
    with pytest.raises(CampaignError, match="members=cnn: sennet_3rd has se, v2s, maxvit, v2l; the first named leads"):
        load_campaign("sennet_3rd", few, ["members=cnn"])
    alone = load_campaign("sennet_5th", few, ["members=vit"])
    assert {s.recipe for s in alone.stages if s.kind == "train"} == {"sennet_5th_maxvit"}
    assert not [s for s in alone.stages if s.kind == "ensemble"]


def test_a_sibling_has_nothing_from_the_donor_that_it_leaves_out(scans):
    """Labels and weights of the rounds come from a, which taught them; d only chose their thresholds."""
    stages = by_name(planned(scans, "sennet_3rd", *TINY, "members=se"))
    without_a, without_e = stages["all-without-a"], stages["all-without-e"]
    assert set(without_a.donors) == {"b", "c", "d", "e"}
    assert without_a.recipe.labels == ("human",)
    assert without_a.stage.init_from is None
    assert [site.specimen for site in without_a.judges] == ["a"]
    assert set(without_e.donors) == {"a", "b", "c", "d"}
    assert without_e.recipe.labels == (stages["labels-2"].output, stages["labels-1"].output, "human")
    assert without_e.stage.init_from == "round-2"
    assert without_a.stage.threshold_from == without_e.stage.threshold_from == "round-2"
    assert [p.specimen for p in stages["all"].scans] == ["a", "d", "b", "c", "e"]


FIRST = {"kind": "train", "name": "first", "scans": ["a"], "validation": ["d"]}
SOFT = {"kind": "pseudolabel", "name": "soft", "model": "first", "scans": ["u"], "cut": 0.15}


def everything(**changes):
    final = {
        "kind": "train",
        "name": "all",
        "scans": ["a", "d"],
        "validation": [],
        "threshold_from": "first",
        "siblings": ["first"],
    }
    return {**final, **changes}


def test_a_scan_that_only_a_model_labelled_which_saw_the_donor_is_left_out_too(scans, tmp_path):
    final = everything(scans=["a", "d", "u"], labels=["soft", "human"], siblings="each", init_from="models:/old/3")
    stages = by_name(planned(scans, written(tmp_path, FIRST, SOFT, final)))
    assert [site.specimen for site in stages["all-without-a"].scans] == ["d"]
    assert [site.specimen for site in stages["all-without-d"].scans] == ["a", "u"]
    assert stages["all-without-a"].stage.init_from is None, "the model has seen a"
    assert stages["all-without-d"].stage.init_from == "models:/old/3"
    only_soft = everything(scans=["d", "u"], labels=["soft", "human"], siblings="each")
    path = written(tmp_path, {**FIRST, "scans": ["a"], "validation": ["e"]}, {**SOFT, "scans": ["u"]}, only_soft)
    assert [s.specimen for s in by_name(planned(scans, path))["all-without-d"].scans] == ["u"]
    refused(
        scans,
        written(tmp_path, FIRST, SOFT, everything(scans=["a", "u"], labels=["soft", "human"], siblings="each")),
        "without donor 'a', and without labels of models that have seen this donor, nothing is left",
    )
    sparse = everything(scans=["b", "c"], siblings="each")
    refused(scans, written(tmp_path, FIRST, sparse), "whom people labelled densely, and it learns from none")


def test_everything_has_siblings_that_are_the_same_training(scans, tmp_path):
    check(planned(scans, written(tmp_path, FIRST, everything())))
    other = everything(settings=["steps=20"])
    refused(scans, written(tmp_path, FIRST, other), "sibling first is another training; they differ in steps")
    refused(
        scans,
        written(tmp_path, FIRST, everything(scans=["a", "e"])),
        "sibling first knows d, which all does not learn",
    )
    scored = {"kind": "evaluate", "name": "scored", "model": "all", "scans": ["d"]}
    refused(scans, written(tmp_path, FIRST, everything(), scored), "donor 'd' is scored.*all ← human of d")
    by_hand = everything(name="without-a", scans=["d"], siblings=[], scored_by=["a"])
    check(planned(scans, written(tmp_path, FIRST, by_hand, everything(siblings=["without-a"]))))
    seen = {**by_hand, "scans": ["a", "d"]}
    refused(scans, written(tmp_path, FIRST, seen), "Stage without-a: donor 'a' is scored.*human of a")


def test_where_no_donor_chooses_convergence_ends_the_training(scans, tmp_path):
    path = written(tmp_path, FIRST, everything(), settings=["steps=20"])
    refused(
        scans, path, "Stage all: where no donor chooses, a training stops when its loss has converged.*converged=0.01"
    )


ENSEMBLE = {"kind": "ensemble", "scans": [], "threshold_from": "both"}


def test_an_ensemble_of_members_that_learnt_from_everything_is_scored_by_siblings_of_all(scans, tmp_path):
    wide = ["seed=1", "augmentation.flips=0"]
    trained = [FIRST, {**FIRST, "name": "second", "settings": wide}, {**FIRST, "name": "third"}]
    both = {"kind": "ensemble", "name": "both", "models": ["first", "second"], "scans": ["d"]}
    other = {**both, "name": "other", "models": ["second", "first"]}
    final = [everything(), everything(name="all-2", settings=wide, siblings=["second"])]

    def written_with(*siblings):
        last = {**ENSEMBLE, "name": "last", "models": ["all", "all-2"], "siblings": list(siblings)}
        return written(tmp_path, *trained, both, other, *final, last)

    plan = planned(scans, written_with("both"))
    check(plan)
    assert set(by_name(plan)["last"].donors) == {"a", "d"}
    refused(scans, written_with("other"), "sibling second is another training; they differ in augmentation.flips")
    refused(scans, written_with("first"), "Stage last: sibling first is no ensemble of as many trainings")
    chosen = {**both, "name": "last", "models": ["all", "all-2"]}
    path = written(tmp_path, *trained, both, *final, chosen)
    refused(scans, path, "Stage last: donor 'd' chooses.*all ← human of d")


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        ([everything(threshold_from=None)], "without validation needs threshold_from and siblings"),
        ([everything(siblings=[])], "without validation needs threshold_from and siblings"),
        ([everything(siblings="every")], "siblings"),
        ([everything(validation=["e"])], "are for a stage without validation"),
        ([FIRST, {**ENSEMBLE, "name": "e", "models": ["models:/m/1", "models:/m/2"]}], "needs threshold_from and sib"),
        (
            [FIRST, {**ENSEMBLE, "name": "e", "kind": "tune", "models": ["first"], "threshold_from": "first"}],
            "tune chooses nothing",
        ),
        (
            [{**ENSEMBLE, "name": "e", "scans": ["d"], "models": ["models:/m/1", "models:/m/2"]}],
            "are for an ensemble without scans",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(scans, tmp_path, stages, match):
    with pytest.raises(CampaignError, match=match):
        load_campaign(written(tmp_path, *stages), scans)


def test_members_are_of_built_in_campaigns_and_siblings_have_names_of_their_own(scans, tmp_path):
    with pytest.raises(CampaignError, match="--set members is for built-in campaigns"):
        load_campaign(written(tmp_path, FIRST), scans, ["members=se"])
    taken = {**FIRST, "name": "all-without-a"}
    refused(
        scans, written(tmp_path, FIRST, taken, everything(siblings="each")), "Two stages are called 'all-without-a'"
    )


def test_the_cost_of_members_and_siblings_is_counted(scans):
    plan = planned(scans, "sennet_3rd", *TINY, "test=e", "members=se,v2l", "recipe.steps=10")
    cost = costs(plan)
    trainings = [p.stage.name for p in plan.stages if p.recipe]
    assert len(trainings) == 8
    assert all(cost[name].steps == 10 and cost[name].gpu_hours > 0 for name in trainings)
    assert cost["all-se-without-a"].read_bytes > cost["all-se"].read_bytes, "the donor that it left out is predicted"
    assert cost["all"] == cost["all"].model_copy(update={"gpu_hours": 0.0, "read_bytes": 0}), "nothing is tuned"
    assert cost["round-2"].gpu_hours > 0

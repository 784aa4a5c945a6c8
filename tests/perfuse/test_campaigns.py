import numpy as np
import pytest
import yaml

from perfuse import storage, volumes
from perfuse.campaigns import CAMPAIGNS, Roles, load_campaign, plan_campaign
from perfuse.campaigns.cost import costs
from perfuse.campaigns.leakage import check
from perfuse.campaigns.networks import check_networks
from perfuse.campaigns.roles import choose
from perfuse.catalog import LabelInfo, Scan
from perfuse.contract import Forward, Network
from perfuse.errors import CampaignError
from perfuse.labels import writer_for
from perfuse.models.operations import LEARNING, SUSTAINED
from perfuse.training import plan_job

SHAPE = (24, 32, 32)
TINY = ["recipe=quickstart", "recipe.network.encoder=tu-test_resnet", "recipe.network.decoder_channels=16,8,8,8,8"]


def no_model(uri: str) -> dict[str, str]:
    raise AssertionError(f"{uri} was asked for")


@pytest.fixture(scope="module")
def scans(campaign_scans):
    return campaign_scans


def planned(scans, name="sennet_3rd", *settings, donors_of=no_model):
    campaign = load_campaign(name, scans, [*TINY, *settings])
    return plan_campaign(campaign, scans, "scans", donors_of=donors_of)


def by_name(plan):
    return {p.stage.name: p for p in plan.stages}


def written(tmp_path, *stages, **more):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "quickstart", "stages": list(stages), **more}))
    return str(path)


def refused(scans, path, match):
    with pytest.raises(CampaignError, match=match):
        check(planned(scans, path))


def test_parts_follow_from_labels(scans):
    assert choose(scans, Roles()) == Roles(dense=("a", "d"), sparse=("b", "c"), unlabelled=("u",), validation=("e",))
    stated = choose(scans, Roles(test=("e",), sparse=("c",)))
    assert stated == Roles(dense=("a",), sparse=("c",), unlabelled=("u",), validation=("d",), test=("e",))
    with pytest.raises(
        CampaignError, match=r"validation: there is no specimen or scan 'z'. There are: a; b; c; d; e; u"
    ):
        choose(scans, Roles(validation=("z",)))


def test_the_only_dense_donor_is_learnt_from(scans):
    few = [s for s in scans if s.info.specimen in "abu"]
    assert choose(few, Roles()) == Roles(dense=("a",), sparse=("b",), unlabelled=("u",))
    with pytest.raises(CampaignError, match=r"needs a specimen that plays the part 'validation'.*--set validation="):
        load_campaign("sennet_3rd", few)


def test_a_scan_plays_a_part_alone_by_its_id(scans, tmp_path, make_scan):
    mask = np.full(SHAPE, 255, np.uint8)
    fine = make_scan(tmp_path, "a-fine", np.zeros(SHAPE, np.uint16), {"human": mask}, voxel=5.0)
    info = fine.info.model_copy(update={"specimen": "a", "donor": "a"})
    volumes.open_group(fine.url, "r+").attrs["perfuse"] = info.model_dump(mode="json")
    kidneys = [
        Scan(s.url, s.group, s.info.model_copy(update={"id": "a-coarse"})) if s.info.id == "a" else s for s in scans
    ]
    both = [*kidneys, Scan.open(fine.url)]
    alone = planned(both, "sennet_3rd", "dense=a-coarse", "test=d")
    assert alone.stages[0].recipe.train == ("a-coarse",)
    assert {site.url for stage in alone.stages for site in (*stage.scans, *stage.judges)}.isdisjoint([fine.url])
    assert planned(both, "sennet_3rd", "dense=a", "test=d").stages[0].recipe.train == ("a",)
    said = r"dense: there is no specimen or scan 'z'. There are: a \(scans a-coarse, a-fine\); b; "
    with pytest.raises(CampaignError, match=said):
        planned(both, "sennet_3rd", "dense=z")


def test_fifth_place_teaches_softly_by_three_networks_and_thirteenth_trains_once(scans):
    campaign = load_campaign("sennet_5th", scans, ["test=e"])
    kinds = [stage.kind for stage in campaign.stages]
    assert [s.scans for s in campaign.stages if s.kind == "pseudolabel"] == [("b",), ("c",), ("u",)]
    assert all(s.cut is None for s in campaign.stages if s.kind == "pseudolabel")
    assert kinds.count("train") == 12
    assert kinds.count("ensemble") == kinds.count("evaluate") == 4
    assert {s.recipe for s in campaign.stages if s.kind == "train"} == {
        "sennet_5th",
        "sennet_5th_dpn68",
        "sennet_5th_maxvit",
    }
    once = load_campaign("sennet_13th", scans, ["test=e"])
    assert [(s.kind, s.scans) for s in once.stages] == [("train", ("a", "b", "c")), ("evaluate", ("test",))]
    for name in CAMPAIGNS:
        check(planned(scans, name, "test=e"))


def test_keys_follow_what_decides_and_nothing_else(scans, tmp_path, make_scan):
    keys = {n: p.key for n, p in by_name(planned(scans, "sennet_3rd", "members=se")).items()}
    assert {n: p.key for n, p in by_name(planned(scans, "sennet_3rd", "members=se")).items()} == keys
    assert len(set(keys.values())) == len(keys)

    def changed(*settings, name="sennet_3rd"):
        now = {n: p.key for n, p in by_name(planned(scans, name, "members=se", *settings)).items()}
        return {n for n in keys if now[n] != keys[n]}

    assert changed("recipe.steps=7") == set(keys)
    of_round_2 = {"round-2", "all-without-a", "all-without-d", "all-without-e", "all"}
    assert changed("round-2.seed=7") == of_round_2 == changed("round-2.steps=20"), "siblings inherit its threshold"
    assert changed("sparse=b,c") == set()
    before = by_name(planned(scans, "sennet_3rd", "members=se", "sparse=b,c,u"))
    assert {n: before[n].key for n in ("dense", "labels-1", "round-1", "labels-2")} == {
        n: keys[n] for n in ("dense", "labels-1", "round-1", "labels-2")
    }, "a further round repeats no round of the first member"

    def with_other_marks_on(scan):
        image, about = np.asarray(scan.image[:]), scan.label_info("human")
        marks = {"human": np.full(SHAPE, 255, np.uint8)}
        other = make_scan(tmp_path, scan.info.specimen, image, marks, kind=about.kind, coverage=about.coverage)
        rest = [s for s in scans if s is not scan]
        now = {n: p.key for n, p in by_name(planned([other, *rest], "sennet_3rd", "members=se")).items()}
        return {n for n in keys if now[n] != keys[n]}

    a, b = scans[:2]
    assert with_other_marks_on(a) == set(keys)
    assert with_other_marks_on(b) == set(keys) - {"dense"}, "another campaign from where b is met"


TRAIN_A = {"kind": "train", "name": "first", "scans": ["a"], "validation": ["d"]}
LABELS = {"kind": "pseudolabel", "name": "soft", "model": "first", "scans": ["u"]}


def test_a_donor_that_taught_the_labels_cannot_select(scans, tmp_path):
    second = {"kind": "train", "name": "second", "scans": ["u", "d"], "labels": ["soft", "human"], "validation": ["a"]}
    path = written(tmp_path, TRAIN_A, LABELS, second)
    refused(scans, path, r"Stage second: donor 'a' chooses.*second ← soft of u ← first ← human of a")
    ensemble = {"kind": "tune", "name": "tuned", "models": ["first"], "scans": ["a"]}
    refused(scans, written(tmp_path, TRAIN_A, ensemble), r"Stage tuned: donor 'a' chooses.*first ← human of a")
    scored = {"kind": "evaluate", "name": "scored", "model": "first", "scans": ["a"]}
    refused(scans, written(tmp_path, TRAIN_A, scored), r"Stage scored: donor 'a' is scored.*first ← human of a")


def test_initial_weights_are_ancestors_too(scans, tmp_path):
    second = {"kind": "train", "name": "second", "scans": ["d"], "validation": ["a"], "init_from": "first"}
    refused(scans, written(tmp_path, TRAIN_A, second), r"Stage second: donor 'a' chooses.*second ← first ← human of a")
    outside = {**second, "init_from": "models:/old/3"}
    path = written(tmp_path, outside)
    with pytest.raises(CampaignError, match=r"second ← models:/old/3 ← human of a"):
        check(planned(scans, path, donors_of=lambda uri: {"a": f"{uri} ← human of a"}))
    check(planned(scans, path, donors_of=lambda uri: {"b": f"{uri} ← human of b"}))
    moving = written(tmp_path, {**second, "init_from": "models:/old@champion"})
    with pytest.raises(CampaignError, match="another model tomorrow"):
        planned(scans, moving, donors_of=lambda _: {})


def write_soft(scan, name, **lineage):
    writer = writer_for(scan, name, "key")
    for task in writer.todo():
        writer.write(task, np.full(writer.tasks[task].shape, 200, np.uint8))
    writer.finish(lambda f, digest: LabelInfo(name=name, kind="soft", foreground=f, digest=digest, lineage=lineage))


def test_a_training_takes_of_each_scan_what_its_stages_cover(tmp_path, make_scan):
    """Though the same model's predictions of other scans, for another stage, have the same name."""
    scans = [make_scan(tmp_path, n, np.zeros(SHAPE, np.uint16), {"human": np.zeros(SHAPE, np.uint8)}) for n in "ade"]
    scans.append(make_scan(tmp_path, "u", np.zeros(SHAPE, np.uint16), {}))
    seen = {"kind": "evaluate", "name": "seen", "model": "first", "scans": ["d"]}
    second = {"kind": "train", "name": "second", "scans": ["a", "d", "u"], "labels": ["soft", "human"]}
    first, second = ({**stage, "validation": ["e"], "settings": ["crop=32"]} for stage in (TRAIN_A, second))
    path = written(tmp_path, first, seen, {**LABELS, "kind": "predict"}, second)
    plan = by_name(plan_campaign(load_campaign(path, scans, TINY), scans, str(tmp_path), donors_of=no_model))
    name = plan["soft"].output
    assert plan["seen"].output == name
    for scan in scans[1:]:
        write_soft(scan, name)
    job = plan_job(plan["second"].recipe, str(tmp_path), str(tmp_path), taken=plan["second"].labels)
    taken = {source.specimen: source.label for source in (*job.train, *job.validation)}
    assert taken == {"a": "human", "d": "human", "e": "human", "u": name}


def test_labels_from_elsewhere_bring_their_donors(tmp_path, make_scan, scans):
    image = np.zeros(SHAPE, np.uint16)
    old = make_scan(tmp_path, "w", image, {})
    write_soft(old, "soft", donors={"d": "models:/old/1 ← human of d"})
    train = {"kind": "train", "name": "first", "scans": ["w", "a"], "labels": ["soft", "human"], "validation": ["d"]}
    refused([*scans, Scan.open(old.url)], written(tmp_path, train), r"soft of w ← models:/old/1 ← human of d")


def test_nothing_learns_from_a_test_donor(scans, tmp_path):
    path = written(tmp_path, TRAIN_A, roles={"test": ["a"]})
    refused(scans, path, r"donor 'a' is kept for testing.*first ← human of a")


TUNED = {"kind": "tune", "name": "t", "models": ["e"]}
PAIR = {"kind": "ensemble", "name": "e", "models": ["models:/m/1", "models:/m/2"]}


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        ([LABELS], "stage 'soft' takes a model from 'first'; before it there are: none"),
        ([TRAIN_A, TRAIN_A], "two stages are called 'first'"),
        ([{"kind": "ensemble", "name": "e", "models": ["models:/m/1"]}], "ensemble two or more; ensemble got 1"),
        (
            [
                PAIR,
                {**TRAIN_A, "init_from": "e"},
            ],
            "cannot start from 'e'",
        ),
        ([{**PAIR, "weights": [1, 2, 3]}], "3 weights for 2 models: give one for each"),
        ([{**PAIR, "weights": [0, 0]}], "at least one must be above 0"),
        ([{**PAIR, "kind": "tune", "models": ["models:/m/1"], "average": "logit"}], "average, .* are for an ensemble"),
        (
            [{**PAIR, "weights": [1, 2]}, {**PAIR, "name": "f", "models": ["e", "models:/m/3"]}],
            "stage 'f' averages members of 'e' otherwise",
        ),
        (
            [PAIR, {**PAIR, "name": "f", "models": ["e", "models:/m/3"], "temperatures": [1, 2]}],
            "members of 'e' otherwise",
        ),
        ([{**PAIR, "weights": [1, float("inf")]}], "finite"),
        (
            [{**PAIR, "weights": [1, 2]}, TUNED, {**PAIR, "name": "f", "models": ["t", "models:/m/3"]}],
            "stage 'f' averages members of 't' otherwise",
        ),
        ([PAIR, TUNED, {**TRAIN_A, "init_from": "t"}], "cannot start from 't'"),
        ([{"kind": "dance", "name": "d"}], "dance"),
        ([{**TRAIN_A, "scans": []}], "at least 1 item"),
        ([{**TRAIN_A, "steps": 3}], r"train: Unknown key 'steps'. There are: kind, name, .*settings: \[steps=…\]"),
        ([{**PAIR, "weight": [1, 2]}], "Did you mean weights\\? There are: kind, .*temperatures"),
        ([{**TRAIN_A, "name": "a/b"}], "name: A name is made of letters, .* got 'a/b'"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(scans, tmp_path, stages, match):
    with pytest.raises(CampaignError, match=match):
        load_campaign(written(tmp_path, *stages), scans)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (
            {"role": {}},
            r"yaml: Unknown key 'role'. Did you mean roles\? There are: name, recipe, settings, roles, stages",
        ),
        ({"roles": {"tests": ["a"]}}, r"roles: Unknown key 'tests'. Did you mean test\? There are: dense, .*, test\."),
        ({"roles": ["a"]}, r"roles = \['a'\] does not say .* Parts: dense, sparse"),
    ],
)
def test_what_is_beside_the_stages_is_refused_with_what_could(scans, tmp_path, more, match):
    with pytest.raises(CampaignError, match=match):
        load_campaign(written(tmp_path, TRAIN_A, **more), scans)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("round-9.steps=3", r"roles dense, sparse.*STAGE one of dense, round-1, round-2-se, round-2-v2s, .*all-se"),
        ("steps=3", r"--set steps: there are the roles"),
        ("steps", "key=value"),
        ("test=zz", "no specimen or scan 'zz'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(scans, setting, match):
    with pytest.raises(CampaignError, match=match):
        load_campaign("sennet_3rd", scans, [setting])
    with pytest.raises(CampaignError, match="Built in: sennet_3rd, sennet_5th, sennet_13th"):
        load_campaign("sennet_4th", scans)


def test_recipes_lie_beside_a_campaign_also_at_a_url(scans, tmp_path):
    def trained(url, *settings):
        plan = plan_campaign(load_campaign(url, scans, settings), scans, "scans", donors_of=no_model)
        return [(p.recipe.name, p.recipe.batch, p.recipe.network.planes) for p in plan.stages]

    stages = [TRAIN_A, {**TRAIN_A, "name": "second", "recipe": "sub/two.yaml"}]
    files = {"rounds": {"recipe": "few.yaml", "stages": stages}, "few": {"batch": 4}, "sub/two": {"batch": 2}}
    for folder in (f"{tmp_path}/study", "memory://study"):
        for name, values in files.items():
            storage.write_bytes(f"{folder}/{name}.yaml", yaml.safe_dump(values).encode())
        assert trained(f"{folder}/rounds.yaml", "recipe.network.planes=3") == [("few", 4, 3), ("two", 2, 3)]
    assert trained("memory://study/rounds.yaml", f"recipe={tmp_path}/study/few.yaml") == [("few", 4, 1)] * 2
    with pytest.raises(CampaignError, match=r"memory://study/none\.yaml is no readable campaign"):
        load_campaign("memory://study/none.yaml", scans)


def test_stages_that_name_nobody_are_refused(scans, tmp_path):
    with pytest.raises(CampaignError, match=r"Stage first: no role, specimen or scan 'x'. There are: a; b"):
        planned(scans, written(tmp_path, {**TRAIN_A, "scans": ["x"]}))
    with pytest.raises(CampaignError, match=r"Stage scored: nobody plays the part test.*--set test=SPECIMEN"):
        planned(scans, written(tmp_path, TRAIN_A, {"kind": "evaluate", "name": "scored", "model": "first"}))
    with pytest.raises(CampaignError, match=r"Stage first: .*u.ome.zarr has none of the labels human"):
        planned(scans, written(tmp_path, {**TRAIN_A, "scans": ["u"]}))
    for setting in ("init_from=models:/m/1", "fold=1/2", "within=0.2"):
        with pytest.raises(
            CampaignError, match=f"Stage first: {setting.split('=')[0]} is not for the recipe of a stage"
        ):
            planned(scans, written(tmp_path, {**TRAIN_A, "settings": [setting]}))


def test_cost_is_counted_from_shapes(scans):
    settings = [
        "recipe.steps=10",
        "recipe.batch=3",
        "recipe.crop=64",
        "recipe.tile=64",
        "recipe.network.planes=3",
        "test=e",
    ]
    plan = planned(scans, "sennet_13th", *settings)
    cost = costs(plan)
    training, scored = cost["training"], cost["training-test"]
    assert (training.steps, training.crops) == (10, 30)
    voxels = int(np.prod(SHAPE))
    assert training.read_bytes == 30 * 3 * 64 * 64 * 2 + scored.read_bytes, "its validation donor is predicted too"
    assert scored.read_bytes == 3 * voxels * 2
    assert scored.written_bytes == 3 * voxels * 2 + voxels
    tiles = sum(SHAPE)
    each = scored.gpu_hours / tiles
    assert training.gpu_hours == pytest.approx((LEARNING * 30 + tiles) * each)
    assert 1e6 < each * SUSTAINED * 3600 < 1e10


def test_every_view_of_a_prediction_costs_what_its_size_does(scans):
    def cost(*settings):
        small = ("recipe.crop=64", "recipe.tile=64", "test=e")
        return costs(planned(scans, "sennet_13th", "recipe=quickstart", *small, *settings))

    once, often = cost(), cost("recipe.turns=flips", "recipe.scales=1,2")
    views = 4 * (1 + 2**2)
    assert often["training-test"].gpu_hours == pytest.approx(views * once["training-test"].gpu_hours)
    judged = [c["training"].gpu_hours - c["training-test"].gpu_hours for c in (once, often)]
    assert judged[0] == pytest.approx(judged[1]), (
        "its one validation donor is as large as the test's, and crops are seen once"
    )
    assert often["training-test"].written_bytes == once["training-test"].written_bytes


def test_recipes_of_several_classes_are_refused(scans):
    with pytest.raises(CampaignError, match=r"has the classes large, vessel, and campaigns are of one.*perfuse train"):
        planned(scans, "sennet_13th", "recipe.labels={vessel: [human], large: [human-large]}")


def test_a_test_donor_chooses_nothing(scans, tmp_path):
    ensemble = {"kind": "tune", "name": "tuned", "models": ["first"], "scans": ["e"]}
    path = written(tmp_path, TRAIN_A, ensemble, roles={"test": ["e"]})
    refused(scans, path, r"Stage tuned: donor 'e' chooses, and is kept for testing")


def test_who_judges_is_labelled_densely_and_alike_in_every_stage(scans, tmp_path, make_scan):
    def refused_when_planned(match, *stages, there=scans, **roles):
        with pytest.raises(CampaignError, match=match):
            planned(there, written(tmp_path, TRAIN_A, *stages, roles={"validation": ["e"], **roles}))

    with pytest.raises(CampaignError, match=r"Stage dense.*: c is to choose.*'human' is sparse.*--set validation="):
        planned(scans, "sennet_3rd", "validation=c")
    tune = {"kind": "tune", "name": "tuned", "models": ["first"]}
    refused_when_planned("Stage tuned: b is to choose.*'human' is sparse", {**tune, "scans": ["b"]})
    taught = {"kind": "pseudolabel", "name": "taught", "model": "first", "scans": ["d"]}
    second = {"kind": "train", "name": "second", "scans": ["a"], "labels": ["taught", "human"], "validation": ["d"]}
    refused_when_planned("Stage second: d is to choose.*'taught' is soft", taught, second)
    mask = np.full(SHAPE, 255, np.uint8)
    other = make_scan(tmp_path, "o", np.zeros(SHAPE, np.uint16), {"other": mask})
    refused_when_planned(r"different labels \(human, other\)", {**tune, "scans": ["e", "o"]}, there=[*scans, other])


def test_a_scan_that_a_stage_may_not_see_is_refused_before_anything_runs(scans, tmp_path, make_scan):
    fine = make_scan(tmp_path, "fine", np.zeros(SHAPE, np.uint16), {"human": np.full(SHAPE, 255, np.uint8)}, voxel=25.0)
    both = {"kind": "ensemble", "name": "both", "models": ["first", "second"], "scans": ["e"]}
    trained = [TRAIN_A, {**TRAIN_A, "name": "second"}, both]

    def refused_by(stage, path):
        for allowed in ("voxel_size_range=2", "resample_um=50"):
            check_networks(planned([*scans, fine], path, f"recipe.{allowed}", "recipe.crop=32"), no_model)
        said = rf"Stage {stage}: scan fine has voxels of 25 .* 33\.3333 to 75 µm only.*--set recipe\.resample_um="
        with pytest.raises(CampaignError, match=said):
            check_networks(planned([*scans, fine], path, "recipe.crop=32"), no_model)

    for kind in ("predict", "pseudolabel", "evaluate"):
        refused_by(
            "last", written(tmp_path, *trained, {"kind": kind, "name": "last", "model": "both", "scans": ["fine"]})
        )
    refused_by("first", written(tmp_path, {**TRAIN_A, "validation": ["fine"]}))

    there = {"kind": "predict", "name": "seen", "model": "models:/there/3", "scans": ["fine"]}
    fitting, coarse = (Forward(network=Network(), voxel_size_um=allowed) for allowed in ((20, 30), (40, 60)))
    plan = planned([*scans, fine], written(tmp_path, there), "recipe.crop=32", donors_of=lambda _: {})
    check_networks(plan, {"models:/there/3": fitting}.__getitem__)
    with pytest.raises(
        CampaignError, match=r"Stage seen: scan fine has voxels of 25 .* 40 to 60 µm.*Name another model"
    ):
        check_networks(plan, {"models:/there/3": coarse}.__getitem__)


def test_networks_are_tried_before_anything_runs(scans, tmp_path):
    for wrong, said in (("recipe.network.encoder=resnet19", "resnet18"), ("recipe.crop=2048", "half of a crop")):
        train = {**TRAIN_A, "settings": [wrong.removeprefix("recipe.")]}
        with pytest.raises(CampaignError, match=rf"Stage first: .*{said}"):
            check_networks(planned(scans, written(tmp_path, train)), no_model)

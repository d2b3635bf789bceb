"""Students whose batch norm is recalibrated on real images, or keeps synthetic samples apart."""

from __future__ import annotations

import shutil

import pytest
import torch
from check_worlds import refusals, toy
from direct_moments import ERROR_BUDGET, STATISTICS, direct_moments
from small_rivals import SMALL_RIVALS, small_rival
from worlds import in_folder, losses_of, train_each, with_engine, with_pairs

from dakd.check.check import check
from dakd.config import Config, TrainSarossConfig, build_config
from dakd.data.prepare import prepare
from dakd.data.shards import ShardSet
from dakd.data.transforms import to_student
from dakd.models.separate_norm import AUXILIARY
from dakd.runtime.seeding import seed_everything
from dakd.runtime.tensor_files import load_state
from dakd.testing.distributed import run_world
from dakd.train.checkpoint import list_checkpoints, load_tensors
from dakd.train.dry_run import describe_saross
from dakd.train.posthoc import reconstruct
from dakd.train.saross import StudentTraining, student_folder, train_saross
from dakd.weights import load_student

PAIRS = "real+synthetic"
FILES = {"ema": "student.safetensors", "raw": "student_raw.safetensors"}
NO_NORM = {"name": "unet", "encoder": "mit_b0",
           "encoder_options": {"decoder_channels": [32, 24, 16, 12, 8], "decoder_use_norm": False}}  # fmt: skip


def state_of(config: Config, training_set: str, kind: str = "ema") -> dict[str, torch.Tensor]:
    return load_state(student_folder(config, training_set) / FILES[kind])


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []


def with_settings(config: Config, **train: object) -> Config:
    tree = config.model_dump(mode="json")
    tree["train_saross"] |= train
    return build_config(tree)


def as_a_kill_after_step_2_leaves_it(config: Config, training_set: str) -> None:
    folder = student_folder(config, training_set)
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    for path in (folder / "manifest.json", *folder.glob("*.safetensors")):
        path.unlink()


def assert_resumed_to_equal_files(straight, folder):
    """The config of a copy of a run that was killed after step 2 and resumed; its files are those of the run."""
    config = in_folder(straight, folder)
    as_a_kill_after_step_2_leaves_it(config, PAIRS)
    train_saross(config, (PAIRS,))
    for kind in FILES:
        assert_equal(state_of(config, PAIRS, kind), state_of(straight, PAIRS, kind))
    return config


# --- recalibrated statistics ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    config = with_pairs(tmp_path_factory.mktemp("plain"))
    train_saross(config)
    return config


@pytest.fixture(scope="module")
def recalibrated(tmp_path_factory):
    config = with_pairs(tmp_path_factory.mktemp("recalibrated"), recalibrate="real")
    train_saross(config)
    return config


@pytest.mark.parametrize("training_set", ["real", PAIRS])
def test_a_training_ends_with_the_statistics_of_its_real_images(plain, recalibrated, training_set):
    training = StudentTraining(recalibrated, training_set)
    assert training.identity["recalibrate"] == "real"
    for kind in FILES:
        ours, theirs = state_of(recalibrated, training_set, kind), state_of(plain, training_set, kind)
        changed = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert changed == [name for name in ours if name.endswith(STATISTICS)]
        net = training.new_net()
        net.load_state_dict(theirs)
        # Twelve images of 64 x 64 need no crop, and are not flipped: their order and batches are known.
        images = list(training._real_images())
        assert [len(batch) for batch in images] == [4, 4, 4] and len(torch.cat(images).unique(dim=0)) == 12
        for norm, moments in direct_moments(net, images).items():
            for key, value in zip(STATISTICS, moments):
                torch.testing.assert_close(ours[f"{norm}.{key}"], value.float(), **ERROR_BUDGET)


def test_real_images_are_the_same_for_every_training_set_and_not_flipped(recalibrated):
    one, other = (list(StudentTraining(recalibrated, name)._real_images()) for name in ("real", PAIRS))
    assert all(map(torch.equal, one, other))
    stored = ShardSet(recalibrated.run_path / "prepare" / "train")
    # Of the size of the crop: as they lie in the shards, in the order of the first epoch.
    images = {to_student(torch.from_numpy(sample.sar)[None, None]).numpy().tobytes() for sample in stored}
    assert {image.numpy().tobytes() for batch in one for image in batch} == images and len(images) == 12


def test_a_resumed_training_is_recalibrated_to_the_same_file(recalibrated, tmp_path):
    assert_resumed_to_equal_files(recalibrated, tmp_path / "run")


def test_another_recalibration_is_another_experiment_but_not_without_real_images(plain):
    changed = with_settings(plain, recalibrate="real")
    with pytest.raises(ValueError, match="recalibrate: None there, 'real' now"):
        train_saross(changed, (PAIRS,))
    without = [StudentTraining(config, "synthetic").identity for config in (plain, changed)]
    assert without[0] == without[1] and without[0]["recalibrate"] is None


# --- separate statistics ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    config = with_pairs(tmp_path_factory.mktemp("separate"), batch_norm="separate")
    train_saross(config)
    return config


@pytest.mark.parametrize("start", [0, 4])
def test_each_kind_has_the_losses_and_statistics_of_a_net_that_sees_it_alone(separate, plain, start):
    """Drop-path follows the samples too: with a rate of 0.9 most of them drop other branches."""
    student = plain.model_dump(mode="json")["train_saross"]["student"]
    student["encoder_options"] |= {"drop_path": 0.9}
    both, alone = (StudentTraining(with_settings(config, student=student), PAIRS) for config in (separate, plain))
    module = both.build(True).train()
    start_state = {name: value.clone() for name, value in module.net.state_dict().items() if AUXILIARY not in name}
    positions = list(range(start, start + 12))
    batch = both.dataset.batch(positions)
    losses = module(batch.to(torch.device("cpu")))["loss"]
    order = batch.is_synthetic.int().argsort(stable=True)
    assert not torch.equal(order, order.argsort()), "the order is its own inverse"
    for flag in (False, True):
        chosen = (batch.is_synthetic == flag).nonzero()[:, 0]
        reference = alone.build(True).train()
        reference.net.load_state_dict(start_state)
        part = alone.dataset.batch([positions[row] for row in chosen.tolist()]).to(torch.device("cpu"))
        # Sums of another order in convolutions of other batches: 1e-5, as between thread counts.
        torch.testing.assert_close(losses[chosen], reference(part)["loss"], rtol=1e-5, atol=1e-6)
        for name, value in reference.net.state_dict().items():
            if name.endswith(STATISTICS):
                norm, key = name.rsplit(".", 1)
                ours = module.net.get_submodule(f"{norm}.{AUXILIARY}" if flag else norm)
                torch.testing.assert_close(getattr(ours, key), value, rtol=1e-5, atol=1e-6)


def test_the_final_files_are_those_of_any_student_and_the_twins_stay_in_the_checkpoints(separate, plain):
    for kind, file in FILES.items():
        ours = state_of(separate, PAIRS, kind)
        assert ours.keys() == state_of(plain, PAIRS, kind).keys()
        net, facts = load_student(student_folder(separate, PAIRS) / file)
        assert facts["batch_norm"] == "separate" and not [name for name in net.state_dict() if AUXILIARY in name]
        assert net(torch.zeros(1, 3, 64, 64)).isfinite().all()
    state = load_tensors(list_checkpoints(student_folder(separate, PAIRS) / "checkpoints")[-1])
    twins = [name for name in state if AUXILIARY in name]
    raw = state_of(separate, PAIRS, "raw")
    for name in twins:
        kind, _, rest = name.partition("/")
        if kind == "master" or (kind == "buffer" and name.endswith(STATISTICS)):
            main = rest.removeprefix("net.").replace(f".{AUXILIARY}", "")
            assert not torch.equal(state[name], raw[main]), name  # both were trained, on other samples
    assert {name.partition("/")[0] for name in twins} >= {"master", "exp_avg", "exp_avg_sq", "ema", "buffer"}


def test_a_resumed_training_with_separate_statistics_is_bitwise_equal(separate, tmp_path):
    config = assert_resumed_to_equal_files(separate, tmp_path / "run")
    ours, theirs = (
        load_tensors(list_checkpoints(student_folder(one, PAIRS) / "checkpoints")[-1]) for one in (config, separate)
    )
    assert_equal(ours, theirs)


def test_on_samples_of_one_kind_separate_is_local_to_the_last_bit(separate, plain):
    assert_equal(state_of(separate, "real"), state_of(plain, "real"))
    for training_set in ("real", "synthetic"):
        ours, theirs = (StudentTraining(config, training_set).identity for config in (separate, plain))
        assert ours == theirs and ours["batch_norm"] == "local"
    assert losses_of(student_folder(separate, PAIRS)) != losses_of(student_folder(plain, PAIRS))


def test_snapshots_of_averages_hold_no_twins(tmp_path):
    optimizer = {"posthoc_every": 2, "lr": 1e-3, "warmup_steps": 2}
    config = with_pairs(tmp_path, batch_norm="separate", optimizer=optimizer)
    train_saross(config, (PAIRS,))
    folder, out = student_folder(config, PAIRS), tmp_path / "average.safetensors"
    reconstruct(folder, folder / FILES["ema"], 0.1, out)
    assert load_state(out).keys() == state_of(config, PAIRS).keys()


def test_a_training_with_channels_last_and_both_settings_ends_in_finite_weights(tmp_path):
    engine = with_pairs(tmp_path / "settings").train_saross.engine.model_dump(mode="json") | {"channels_last": False}
    for name, changed in (("last", {}), ("first", {"engine": engine})):
        config = with_pairs(tmp_path / name, batch_norm="separate", recalibrate="real", steps=2, **changed)
        train_saross(config, (PAIRS,))
    ours, theirs = (
        losses_of(student_folder(in_run(config, tmp_path / name / "run"), PAIRS)) for name in ("last", "first")
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def in_run(config: Config, folder) -> Config:
    return build_config(config.model_dump(mode="json") | {"run_dir": str(folder)})


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_RIVALS)
def test_a_rival_trains_with_both_settings(tmp_path, name):
    config = with_pairs(tmp_path, student=small_rival(name), batch_norm="separate", recalibrate="real", steps=2)
    train_saross(config, (PAIRS,))
    net, _ = load_student(student_folder(config, PAIRS) / FILES["ema"])
    assert net(torch.zeros(1, 3, 64, 64)).isfinite().all()


@pytest.mark.slow
def test_two_ranks_train_with_separate_statistics_and_end_in_one_recalibrated_student(tmp_path):
    """One sample a rank and forward pass: in most passes one kind has no sample at one rank and one at the other."""
    base = with_pairs(tmp_path / "data", batch_norm="separate", recalibrate="real", micro_batch=1)
    configs = [with_engine(in_folder(base, tmp_path / name), name) for name in ("zero1", "zero3")]
    (tmp_path / "out").mkdir()
    found = run_world(train_each, 2, tmp_path / "out", [one.model_dump(mode="json") for one in configs], (), PAIRS)
    assert found[0] == found[1] and found[0][0] == pytest.approx(found[0][1], rel=1e-4)
    alone = in_folder(base, tmp_path / "alone")
    train_saross(alone, (PAIRS,))
    # Whatever the ranks: every forward pass has one sample.
    assert found[0][0] == pytest.approx(losses_of(student_folder(alone, PAIRS)), rel=1e-4)
    seed_everything(base.seed)
    start = StudentTraining(base, PAIRS).new_net().state_dict()
    for config in configs:
        for kind in FILES:
            ours, theirs = state_of(config, PAIRS, kind), state_of(alone, PAIRS, kind)
            assert ours.keys() == theirs.keys()
            # A count of passes is each rank's own. Adam's first steps move a weight by the sign of its gradient, which
            # rounding may turn where it is almost zero: so the weights are compared as a whole, and not one by one.
            names = [name for name in theirs if not name.endswith("num_batches_tracked")]
            apart, moved = (
                torch.cat([(ours[name] - other[name]).flatten() for name in names]).norm() for other in (theirs, start)
            )
            assert apart < 1e-2 * moved


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_norm": "separate", "engine": {"compile": True}}, "engine.compile true.*batch_norm to local"),
        ({"recalibrate": "real", "batch_norm": "frozen"}, "batch_norm frozen.*recalibrate to none"),
        ({"recalibrate": "real", "optimizer": {"posthoc_every": 5}}, "posthoc_every 5.*set one of the two back"),
    ],
)
def test_settings_that_exclude_one_another_are_refused_when_they_are_read(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainSarossConfig(**settings)


@pytest.mark.parametrize("setting", [{"batch_norm": "separate"}, {"recalibrate": "real"}], ids=str)
def test_a_net_without_batch_norms_of_samples_is_refused(tmp_path, setting):
    (key, value), = setting.items()
    found = toy(tmp_path, **{f"train_saross__{key}": value, "train_saross__student": NO_NORM})
    message = f"{key} is {value}, and the student unet with mit_b0 has no batch norm; set {key} to"
    assert message in refusals(found)["student"]
    with pytest.raises(ValueError, match=message):
        describe_saross(found)
    with pytest.raises(ValueError, match=message):
        StudentTraining(with_pairs(tmp_path / "pairs", student=NO_NORM, **setting), "real")
    detector = toy(tmp_path, **{f"train_saross__{key}": value, "train_saross__student": {"name": "sam_oil"}})
    assert f"{key} is {value}, and the student sam_oil has batch norms that may see objects" in (
        refusals(detector)["student"]
    )


def test_settings_without_effect_are_warned_of(tmp_path):
    def warnings(**settings) -> list[str]:
        config = toy(tmp_path, **{f"train_saross__{key}": value for key, value in settings.items()})
        return [one.text for one in check(config) if one.level == "warn" and one.topic == "training sets"]

    assert warnings(batch_norm="separate", recalibrate="real") == []
    assert "batch_norm separate is local" in warnings(batch_norm="separate", training_sets=["real", "synthetic"])[0]
    assert "changes nothing in synthetic" in warnings(recalibrate="real", training_sets=["real", "synthetic"])[0]


def test_one_real_image_is_too_few_to_recalibrate_on(tmp_path):
    config = with_pairs(tmp_path, recalibrate="real")
    tree = config.model_dump(mode="json") | {"run_dir": str(tmp_path / "one")}
    tree["prepare"]["simulation"]["num_train"] = 1
    one = build_config(tree)
    prepare(one, one.run_path)
    with pytest.raises(ValueError, match="recalibrate is real, and there are 1 real images; expected at least 2"):
        StudentTraining(one, "real")

"""Averages of any length from snapshots of two, against the average itself, to a stated error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from worlds import with_pairs

from dakd.cli import main
from dakd.config import build_config, dump_config
from dakd.runtime.tensor_files import load_state, read_metadata, save_weights
from dakd.train.checkpoint import list_checkpoints, write_state
from dakd.train.jointnet import train_jointnet
from dakd.train.optim import AveragingAdamW, decays_of
from dakd.train.posthoc import Profile, fit, power_decay, power_of_length, reconstruct
from dakd.train.saross import student_folder, train_saross
from dakd.train.teacher import stage_folder, stage_weights
from dakd.weights import load_student, load_teacher

STEPS, EVERY, LENGTHS = 600, 30, (0.05, 0.10)


@pytest.mark.parametrize("length, power", [(0.05, 16.97), (0.10, 6.94)])
def test_the_published_lengths_have_their_powers(length, power):
    assert power_of_length(length) == pytest.approx(power, abs=0.005)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.13, 0.25, 0.28])
def test_a_length_is_the_standard_deviation_of_its_profile(length):
    tau = (np.arange(200_000) + 0.5) / 200_000
    weights = tau ** power_of_length(length)
    weights /= weights.sum()
    mean = (weights * tau).sum()
    assert np.sqrt((weights * (tau - mean) ** 2).sum()) == pytest.approx(length, rel=1e-4)


def test_a_length_that_no_profile_has_is_refused():
    for length in (0.0, 0.3):
        with pytest.raises(ValueError, match=r"expected a number above 0 and at most 0\.28"):
            power_of_length(length)


def test_the_product_of_two_profiles_is_their_integral():
    early, late = Profile(30, 3.0), Profile(50, 8.0)
    tau = (np.arange(300_000) + 0.5) * (30 / 300_000)
    integral = ((4 * tau**3 / 30.0**4) * (9 * tau**8 / 50.0**9)).mean() * 30
    assert early.dot(late) == pytest.approx(integral, rel=1e-6) and early.dot(late) == late.dot(early)


def weights_of_a_training(seed=0):
    """(STEPS, 50): a drift that slows down, under noise that shrinks, as weights move under a falling rate."""
    rng = np.random.default_rng(seed)
    progress = np.linspace(0, 1, STEPS)[:, None]
    drift = (1 - np.exp(-3 * progress)) * rng.normal(size=50)
    return drift + np.cumsum(rng.normal(size=(STEPS, 50)) * 0.02 * (1 - 0.9 * progress), axis=0)


def average_directly(weights, power, step):
    average = np.zeros(weights.shape[1])
    for number in range(1, step + 1):
        decay = power_decay(number, power)
        average = decay * average + (1 - decay) * weights[number - 1]
    return average


def snapshots_of(weights, folder):
    """What a training leaves: both averages at every EVERY steps, in fp32, as the loop writes them."""
    averages = [np.zeros(weights.shape[1]) for _ in LENGTHS]
    for number in range(1, STEPS + 1):
        for i, length in enumerate(LENGTHS):
            decay = power_decay(number, power_of_length(length))
            averages[i] = decay * averages[i] + (1 - decay) * weights[number - 1]
        if number % EVERY == 0:
            tensors = {f"posthoc_{i}/net.w": torch.tensor(value).float() for i, value in enumerate(averages)}
            write_state(folder / "posthoc" / f"step-{number:08d}", tensors, {"step": number, "lengths": LENGTHS})


@pytest.mark.parametrize("step", [STEPS, 450])
@pytest.mark.parametrize("length, tolerance", [(0.05, 1e-5), (0.10, 1e-5), (0.07, 2e-3), (0.15, 2e-3), (0.25, 0.03)])
def test_an_average_from_twenty_snapshots_is_the_direct_one(tmp_path, length, tolerance, step):
    """Relative to how far the weights of the training lie apart: 0.2 % for lengths between and near the two kept ones.

    A nearly flat average, which weighs the time before the first snapshot too, is off by up to 3 %.
    """
    weights = weights_of_a_training()
    snapshots_of(weights, tmp_path)
    save_weights(tmp_path / "final.safetensors", {"w": torch.zeros(50), "held": torch.ones(2)}, {"kind": "toy"})
    out = tmp_path / "out.safetensors"
    error = reconstruct(tmp_path, tmp_path / "final.safetensors", length, out, step)
    wanted = average_directly(weights, power_of_length(length), step)
    found = load_state(out)
    off = np.linalg.norm(found["w"].numpy() - wanted) / np.linalg.norm(weights[:step].std(axis=0))
    assert off < tolerance and error < 0.1, (off, error)
    assert torch.equal(found["held"], torch.ones(2))


def test_views_of_the_whole_training_are_not_those_of_an_average_before_its_end(tmp_path):
    snapshots_of(weights_of_a_training(), tmp_path)
    facts = {"kind": "toy", "views": {"steps": STEPS, "real": 16, "synthetic": 0}}
    save_weights(tmp_path / "final.safetensors", {"w": torch.zeros(50)}, facts)
    for step in (STEPS, 450):
        reconstruct(tmp_path, tmp_path / "final.safetensors", 0.1, tmp_path / f"{step}.safetensors", step)
    assert read_metadata(tmp_path / f"{STEPS}.safetensors")["views"] == facts["views"]
    assert "views" not in read_metadata(tmp_path / "450.safetensors")


def test_a_length_far_below_the_interval_of_the_snapshots_shows_in_the_fits_error():
    profiles = [Profile(step, power_of_length(length)) for step in (100, 200, 300) for length in LENGTHS]
    assert fit(profiles, Profile(300, power_of_length(0.10)))[1] < 1e-5
    assert fit(profiles, Profile(300, power_of_length(0.01)))[1] > 0.3


def test_a_damaged_snapshot_is_left_out_and_named(tmp_path, capsys):
    snapshots_of(weights_of_a_training(), tmp_path)
    broken = list_checkpoints(tmp_path / "posthoc")[5] / "state.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    save_weights(tmp_path / "final.safetensors", {"w": torch.zeros(50)}, {})
    reconstruct(tmp_path, tmp_path / "final.safetensors", 0.1, tmp_path / "out.safetensors")
    assert f"damaged snapshot, left out: {broken}" in capsys.readouterr().out


def test_an_average_replaces_itself_and_no_other_file(tmp_path):
    snapshots_of(weights_of_a_training(), tmp_path)
    final, out = tmp_path / "final.safetensors", tmp_path / "out.safetensors"
    save_weights(final, {"w": torch.zeros(50)}, {"kind": "toy"})
    for _ in range(2):
        reconstruct(tmp_path, final, 0.1, out)
    yaml, checkpoint = tmp_path / "toy.yaml", list_checkpoints(tmp_path / "posthoc")[0] / "state.safetensors"
    yaml.write_text("name: toy")
    own = tmp_path / "train_saross" / "real" / "new.safetensors"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in (yaml, final, checkpoint, tmp_path):
        with pytest.raises(ValueError, match=r"is not this average .* give another file"):
            reconstruct(tmp_path, final, 0.1, path)
    for length, step in ((0.2, STEPS), (0.1, 450)):
        with pytest.raises(ValueError, match=r"is not this average .* give another file"):
            reconstruct(tmp_path, final, length, out, step)
    with pytest.raises(ValueError, match="lies in the folder of a training"):
        reconstruct(tmp_path, final, 0.1, own)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_optimizer_keeps_power_averages_as_they_are_defined():
    from dakd.config import OptimizerConfig

    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(7))
    optimizer = AveragingAdamW([parameter], decays=decays_of(OptimizerConfig(posthoc_every=10)), lr=0.1)
    optimizer.create_states()
    seen = []
    for _ in range(40):
        parameter.grad = torch.randn(7)
        optimizer.step()
        seen.append(parameter.detach().double().numpy().copy())
    for i, length in enumerate(LENGTHS):
        wanted = average_directly(np.stack(seen), power_of_length(length), 40)
        np.testing.assert_allclose(optimizer.state[parameter][f"posthoc_{i}"].numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_training_leaves_snapshots_and_the_command_makes_weights_that_load(tmp_path, capsys):
    tree = with_pairs(tmp_path).model_dump(mode="json")
    for section in ("train_jointnet", "train_saross"):
        tree[section]["optimizer"]["posthoc_every"] = 3
    config = build_config(tree)
    train_jointnet(config, (1, 2))
    train_saross(config, ("real",))
    names = ["step-00000003", "step-00000004"]
    assert [path.name for path in list_checkpoints(stage_folder(config, "stage2") / "posthoc")] == names
    path = tmp_path / "toy.yaml"
    path.write_text(dump_config(config))
    for of, weights in (
        ("stage2", stage_weights(config, "stage2", "ema")),
        ("real", student_folder(config, "real") / "student.safetensors"),
    ):
        out = tmp_path / f"{of}.safetensors"
        assert main(["ema", "--config", str(path), "--of", of, "--length", "0.2", "--out", str(out)]) == 0
        found, final = load_state(out), load_state(weights)
        assert set(found) == set(final) and any(not torch.equal(found[name], final[name]) for name in final)
        held = [name for name in final if name.startswith("sar_net.")]
        assert all(torch.equal(found[name], final[name]) for name in held) and (of == "real" or held)
    assert "the error of its fitted profile is" in capsys.readouterr().out
    net, facts = load_teacher(tmp_path / "stage2.safetensors")
    assert facts["ema_length"] == 0.2 and facts["ema_step"] == 4
    net, _ = load_student(tmp_path / "real.safetensors")
    assert bool(torch.isfinite(net(torch.rand(1, 3, 64, 64))).all())
    assert main(["ema", "--config", str(path), "--of", "stage3", "--length", "0.2", "--out", str(out)]) == 1
    assert "has no snapshots; set optimizer.posthoc_every" in capsys.readouterr().err
    for of in ("stage9", "../real"):
        assert main(["ema", "--config", str(path), "--of", of, "--length", "0.2", "--out", str(out)]) == 1
        assert f"--of is '{of}'; expected one of stage1, stage2" in (error := capsys.readouterr().err)
        assert "take one with snapshots: stage1, stage2, real" in error

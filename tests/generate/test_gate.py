"""The gate: verdicts are functions of a sample, the kept ones fulfil the quotas, and N pairs means N that are kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from worlds import with_teacher

from dakd.config import GateConfig, ShareBounds, StudentConfig, build_config
from dakd.data.sample import OSD_CLASSES, ClassTable, Sample
from dakd.data.shards import ShardSet, verify
from dakd.generate import gate_measures
from dakd.generate import worker as working
from dakd.generate.gate import SURPLUS, Gate, Quotas
from dakd.generate.gate_measures import GateMeasures, Labeller, mean_entropy, measure
from dakd.generate.generate import generate, repair
from dakd.generate.generate import verify as verify_set
from dakd.generate.plan import open_plan
from dakd.generate.status import status
from dakd.models.registry import build_student
from dakd.runtime.files import file_hash
from dakd.runtime.tensor_files import weights_hash
from dakd.weights import load_student, save_student


def sample(label: np.ndarray, seed: int = 0, looks: float = 10.0, sharpness: float = 8.0) -> Sample:
    """A soft label that is sure of `label`, on gamma speckle of mean 100."""
    rng = np.random.default_rng(seed)
    sar = np.clip(rng.gamma(looks, 100 / looks, label.shape), 0, 255).round().astype(np.uint8)
    logits = sharpness * (np.arange(5)[:, None, None] == label)
    return Sample("a", sar, soft_label=logits.astype(np.float16))


def label_with(**pixels: int) -> np.ndarray:
    """64 x 64 of sea with so many pixels of other classes at the end."""
    flat = np.zeros(64 * 64, np.int64)
    stop = len(flat)
    for name, count in pixels.items():
        flat[stop - count : stop] = OSD_CLASSES.id_of(name.replace("_", "-"))
        stop -= count
    return flat.reshape(64, 64)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_measures_are_a_function_of_the_sample_alone():
    one, cfg = sample(label_with(ship=20, land=100)), GateConfig()
    before = [one.sar.copy(), one.soft_label.copy()]
    first = measure(one, OSD_CLASSES, cfg)
    measure(sample(label_with(oil=4000), seed=5), OSD_CLASSES, cfg)
    assert measure(one, OSD_CLASSES, cfg) == first
    assert np.array_equal(one.sar, before[0]) and np.array_equal(one.soft_label, before[1])
    assert first.class_pixels == [4096 - 120, 0, 0, 20, 100] and first.agreement is None


def test_entropy_is_that_of_softmax_in_nats():
    logits = np.random.default_rng(0).normal(0, 3, (5, 6, 7)).astype(np.float16)
    wanted = torch.distributions.Categorical(logits=torch.tensor(logits).double().movedim(0, -1)).entropy().mean()
    assert mean_entropy(logits) == pytest.approx(float(wanted), abs=1e-5)
    assert mean_entropy(np.zeros((5, 4, 4), np.float16)) == pytest.approx(np.log(5))
    assert mean_entropy(np.array([6e4, -6e4], np.float16).reshape(2, 1, 1)) == 0


@pytest.fixture
def student_file(tmp_path):
    config = with_teacher(tmp_path / "student")
    torch.manual_seed(0)
    net = build_student(config.train_saross.student, 5)
    save_student(tmp_path / "student.safetensors", net, config.train_saross.student, OSD_CLASSES, {})
    return tmp_path / "student.safetensors"


def test_agreement_is_the_mean_iou_over_the_classes_that_either_label_holds(student_file, monkeypatch):
    cfg = GateConfig(student=str(student_file))
    student = Labeller(student_file, OSD_CLASSES, torch.device("cpu"))
    truth, predicted = label_with(ship=100), label_with(ship=50, oil=5)
    one = sample(truth)
    again = [student.label(one.sar) for _ in range(2)]
    assert np.array_equal(*again) and again[0].shape == (64, 64)
    monkeypatch.setattr(Labeller, "label", lambda self, sar: predicted)
    # Pixels of both over pixels of either, of sea and of ship; the five of oil are a speck.
    wanted = (3996 / 4041 + 50 / 100) / 2
    assert measure(one, OSD_CLASSES, cfg, student).agreement == pytest.approx(wanted, abs=1e-6)


def test_a_student_of_other_classes_is_refused(student_file, tmp_path):
    other = ClassTable(("a", "b", "c", "d", "e"), OSD_CLASSES.colours)
    with pytest.raises(ValueError, match="knows the classes sea, oil"):
        Labeller(student_file, other, torch.device("cpu"))


# --- bounds and quotas ------------------------------------------------------------------------------------------------


def gate(**settings) -> Gate:
    return Gate(GateConfig.model_validate({"enabled": True} | settings), OSD_CLASSES)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"areas": {"land": {"at_most": 0.01}}}, ["area of land"]),
        ({"areas": {"ship": {"at_least": 0.01}}}, ["area of ship"]),
        ({"entropy": {"at_most": 0.001}}, ["entropy"]),
        ({"enl": {"at_least": 50}}, ["ENL"]),
        ({"enl": {"at_most": 5}, "areas": {"land": {"at_most": 0.01}}}, ["ENL", "area of land"]),
        ({"areas": {"land": {"at_most": 0.1}}, "entropy": {"at_least": 0.0, "at_most": 0.1}}, []),
    ],
)
def test_a_candidate_is_refused_with_every_bound_that_it_breaks(settings, reason):
    bounded = gate(**settings)
    assert bounded.refuse(measure(sample(label_with(ship=20, land=100)), OSD_CLASSES, bounded.cfg)) == reason


def test_agreement_is_bounded_where_it_was_measured(student_file):
    bounded = gate(agreement={"at_least": 0.6}, student=str(student_file))
    measures = GateMeasures(class_pixels=[1, 0, 0, 0, 0], entropy=0.0, enl=None, agreement=0.59)
    assert bounded.refuse(measures) == ["agreement"] and bounded.refuse(measures._replace(agreement=0.6)) == []


def test_an_image_with_too_few_windows_for_an_enl_is_not_judged_by_it(monkeypatch):
    bounded, one = gate(enl={"at_most": 5}), sample(label_with())
    assert bounded.refuse(measure(one, OSD_CLASSES, bounded.cfg)) == ["ENL"]
    monkeypatch.setattr(gate_measures, "LOOKS_MIN_WINDOWS", 999)
    assert bounded.refuse(measure(one, OSD_CLASSES, bounded.cfg)) == []


def candidates(count: int, seed: int, rates: dict[str, float]) -> list[set[str]]:
    rng = np.random.default_rng(seed)
    return [{name for name, rate in rates.items() if rng.random() < rate} | {"sea"} for _ in range(count)]


def filled(quotas: dict[str, ShareBounds], num_samples: int, offered: list[set[str]]) -> list[int]:
    """The numbers of the kept candidates."""
    taking = Quotas(quotas, num_samples)
    kept = [number for number, held in enumerate(offered) if not taking.offer(held)]
    assert taking.is_full and len(kept) == num_samples
    return kept


def share(low: float | None = None, high: float | None = None) -> ShareBounds:
    return ShareBounds(at_least=low, at_most=high)


@pytest.mark.parametrize("seed", range(5))
def test_a_full_set_honours_every_quota_and_so_do_its_beginnings_nearly(seed):
    quotas = {"ship": share(0.07), "oil": share(0.3, 0.4), "land": share(None, 0.1)}
    offered = candidates(20_000, seed, {"ship": 0.01, "oil": 0.1 + 0.2 * seed, "land": 0.3})
    kept = filled(quotas, 100, offered)
    for num, slack in ((100, 1e-9), (50, 3), (20, 3)):
        counts = Counter(name for number in kept[:num] for name in offered[number])
        assert counts["ship"] >= 0.07 * num - slack
        assert 0.3 * num - slack <= counts["oil"] <= 0.4 * num + slack
        assert counts["land"] <= 0.1 * num + slack


@pytest.mark.parametrize("most, least, number", [(0.25, None, 2), (None, 0.25, 3)])
def test_a_largest_share_is_rounded_down_and_a_least_one_up(most, least, number):
    offered = [{"oil"}, set()] * 20 if least is None else [set(), set(), set(), {"oil"}] * 10
    kept = filled({"oil": share(least, most)}, 10, offered)
    assert sum("oil" in offered[place] for place in kept) == number


def test_a_candidate_that_serves_two_quotas_counts_for_both_and_places_are_held_free_for_each():
    quotas = {"ship": share(0.5), "oil": share(0.5)}
    assert filled(quotas, 4, [{"ship", "oil"}, {"sea"}, {"sea"}, {"ship", "oil"}, {"sea"}]) == [0, 1, 3, 4]
    # No place is free for an image with only sea; after a ship it is oil that is due.
    assert filled(quotas, 4, [{"sea"}, {"ship"}, {"sea"}, {"ship"}, {"oil"}, {"ship"}, {"oil"}]) == [1, 4, 5, 6]


def test_the_kept_candidates_do_not_depend_on_those_that_follow():
    quotas = {"ship": share(0.1)}
    offered = candidates(3000, 0, {"ship": 0.02})
    kept = filled(quotas, 60, offered)
    assert filled(quotas, 60, offered[: kept[-1] + 1]) == kept
    taking = Quotas(quotas, 60)
    for held in offered[: kept[-1] + 1]:
        taking.offer(held)
    assert taking.offer({"ship"}) == [SURPLUS]


def test_quotas_that_no_set_can_meet_are_refused_at_once():
    with pytest.raises(ValueError, match="quotas want 3 images for a set of 2"):
        Quotas({"ship": share(0.1), "oil": share(0.1), "land": share(0.1)}, 2)
    with pytest.raises(ValueError, match="among 10 meets the quota of ship"):
        Quotas({"ship": share(0.11, 0.19)}, 10)
    with pytest.raises(ValueError, match=r"quotas want at_least 1\.1 of the images"):
        GateConfig(quotas={"ship": share(0.6), "oil": share(0.5)})
    with pytest.raises(ValueError, match="no class is called 'boat'"):
        gate(quotas={"boat": {"at_least": 0.1}})


def test_mistakes_in_the_section_are_named():
    with pytest.raises(ValueError, match=r"quotas\.ship\.atleast: unknown key; did you mean 'at_least'"):
        build_config({"name": "x", "generate": {"gate": {"quotas": {"ship": {"atleast": 0.1}}}}})
    with pytest.raises(ValueError, match=r"agreement is bounded .* but there is no student"):
        build_config({"name": "x", "generate": {"gate": {"agreement": {"at_least": 0.1}}}})
    with pytest.raises(ValueError, match=r"at_least 2\.0 is above at_most 1\.0"):
        build_config({"name": "x", "generate": {"gate": {"entropy": {"at_least": 2, "at_most": 1}}}})


# --- sets -------------------------------------------------------------------------------------------------------------


def gated(run, num_samples=5, **gate):
    settings = {"enabled": True} | gate
    return with_teacher(run, num_samples=num_samples, deterministic=True, gate=settings)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """The pairs of these tests are of 16 x 16 pixels."""
    monkeypatch.setattr(gate_measures, "LOOKS_WINDOW", 4)


def median_entropy(folder) -> float:
    """Of the first shards' samples: a bound that refuses half of them."""
    shards = ShardSet(folder)
    return float(np.median([mean_entropy(shards.read(i).soft_label) for i in range(len(shards))]))


def verdicts(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


@pytest.fixture
def bound(whole_set) -> dict:
    return {"entropy": {"at_most": median_entropy(whole_set / "generate")}}


def test_the_set_has_n_kept_pairs_and_further_shards_are_made_for_them(whole_set, bound, on_the_cpu, tmp_path):
    config = gated(tmp_path / "run", **bound)
    folder = generate(config)
    shards, whole = ShardSet(folder), ShardSet(whole_set / "generate")
    found = verdicts(folder)
    kept = [verdict["key"] for verdict in found if verdict["kept"]]
    assert len(shards) == 5 and [shards.key(i) for i in range(5)] == kept
    assert len(shards.index.shards) > 2  # ceil(5 / 3) would do without a gate
    assert all(verdict["entropy"] <= bound["entropy"]["at_most"] for verdict in found if verdict["kept"])
    refused = [verdict for verdict in found if verdict["reasons"] == ["entropy"]]
    assert refused and all(verdict["entropy"] > bound["entropy"]["at_most"] for verdict in refused)
    # candidates are those of the set without a gate
    common = {entry.file for entry in whole.index.shards} & {entry.file for entry in shards.index.shards}
    for name in common:
        assert file_hash(folder / name) == file_hash(whole_set / "generate" / name)
    assert verify(folder) == []
    verify_set(config)
    facts = shards.index.provenance["gate"]
    assert facts["num_candidates"] == len(found) and facts["refused"]["entropy"] == len(refused)
    assert f"keeps 5 of {len(found)} candidates" in status(config)


def test_another_gate_chooses_again_without_making_shards_or_measures_again(bound, tmp_path, monkeypatch, on_the_cpu):
    run = tmp_path / "run"
    folder = generate(gated(run, **bound))
    before = {path: path.stat().st_ino for path in [*folder.glob("shard-*"), *folder.glob("measures/*/*")]}
    strict = ShardSet(folder).fingerprint

    def forbidden(self, shard):
        raise AssertionError("made or measured again")

    with monkeypatch.context() as patch:
        patch.setattr(working.Worker, "_make", forbidden)
        patch.setattr(working.Worker, "_measure", forbidden)
        generate(gated(run))
        loose = ShardSet(folder)
        assert [loose.key(i) for i in range(5)] == [f"synthetic-{i:08d}" for i in range(5)]
        assert {path: path.stat().st_ino for path in before} == before
        generate(with_teacher(run, num_samples=5, deterministic=True))
        assert not (folder / "verdicts.jsonl").exists() and "gate" not in ShardSet(folder).index.provenance
        generate(gated(run, **bound))
        assert ShardSet(folder).fingerprint == strict
    monkeypatch.setattr(gate_measures, "PRESENCE_PIXELS", 3)  # measures of their own
    config = gated(run, **bound)
    generate(config)
    assert len(list(folder.glob("measures/*"))) == 2 and ShardSet(folder).fingerprint == strict
    verify_set(config)


def started(config, task: int) -> multiprocessing.Process:
    """One of three tasks of an array."""

    def work():
        torch.set_num_threads(1)
        os.environ.update({"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "3"})
        generate(config)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_workers_in_any_order_and_after_kills_keep_the_same(bound, tmp_path, on_the_cpu):
    wanted = generate(gated(tmp_path / "one", **bound))
    config = gated(tmp_path / "many", **bound)
    for pause_s in (0.2, 0.4):
        process = started(config, 0)
        process.join(pause_s)
        process.kill()
        process.join()
    workers = [started(config, task) for task in (2, 1, 0)]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0, 0]
    folder = tmp_path / "many" / "generate"
    assert ShardSet(folder).index == ShardSet(wanted).index
    for path in [wanted / "verdicts.jsonl", *wanted.glob("measures/*/*")]:
        assert path.read_bytes() == (folder / path.relative_to(wanted)).read_bytes()
    verify_set(config)


def test_too_many_refusals_end_with_their_reasons_and_a_looser_gate_resumes(tmp_path, on_the_cpu):
    config = gated(tmp_path / "run", max_candidates=2, entropy={"at_most": 0.0}, areas={"ship": {"at_least": 1}})
    with pytest.raises(ValueError, match=r"0 of 5 pairs are kept of 12 candidates, and .* allows no more") as error:
        generate(config)
    assert "12 refused: entropy and area of ship" in str(error.value)
    assert len(list((tmp_path / "run" / "generate").glob("shard-*.tar"))) == 4
    assert len(ShardSet(generate(gated(tmp_path / "run")))) == 5


def test_quotas_hold_in_a_generated_set(tmp_path, on_the_cpu, monkeypatch):
    """Half of the pairs have to hold many pixels of a class that few candidates have."""
    plain = ShardSet(generate(with_teacher(tmp_path / "run", num_samples=24, deterministic=True)))
    areas = np.stack([np.bincount(plain.read(i).soft_label.argmax(0).ravel(), minlength=5) for i in range(24)])
    name, threshold = OSD_CLASSES.names[1], int(np.sort(areas[:, 1])[18])
    monkeypatch.setattr(gate_measures, "PRESENCE_PIXELS", threshold)
    config = gated(tmp_path / "run", 8, quotas={name: {"at_least": 0.5}}, max_candidates=20)
    shards = ShardSet(generate(config))
    held = [np.sum(shards.read(i).soft_label.argmax(0) == 1) >= threshold for i in range(len(shards))]
    assert len(held) == 8 and sum(held) >= 4
    assert any(verdict["reasons"] == [f"fewer {name} than its quota"] for verdict in verdicts(shards.folder))


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "absent", "verdicts"])
def test_damaged_measures_and_verdicts_are_found_named_and_made_again(bound, tmp_path, on_the_cpu, damage):
    config = gated(tmp_path / "run", **bound)
    folder = generate(config)
    wanted = ShardSet(folder).index
    first, second, *_ = sorted(folder.glob("measures/*/*"))
    content = second.read_text()
    if damage == "flip":
        second.write_text(content.replace('"entropy": 0', '"entropy": 1', 1).replace('"entropy": 1', '"entropy": 0', 1)
                          .replace('"agreement": null', '"agreement": 0.5', 1))  # fmt: skip
    elif damage == "cut":
        second.write_text(content[: len(content) // 2])
    elif damage == "other":
        shutil.copy(first, second)
    elif damage == "absent":
        second.unlink()
    else:
        (folder / "verdicts.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"^1 faults in") as error:
        verify_set(config)
    assert ("verdicts.jsonl" if damage == "verdicts" else "shard-000001") in str(error.value)
    repair(config)
    verify_set(config)
    assert second.read_text() == content and ShardSet(folder).index == wanted


def test_a_damaged_shard_beyond_the_first_round_is_found_and_repaired_with_one_within(bound, tmp_path, on_the_cpu):
    config = gated(tmp_path / "run", **bound)
    folder = generate(config)
    wanted = ShardSet(folder).index
    last = open_plan(config).tar(len(wanted.shards) - 1)
    for path in (folder / "shard-000000.tar", last):
        content = bytearray(path.read_bytes())
        content[2100] ^= 1
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^2 faults in"):
        verify_set(config)
    repair(config)
    verify_set(config)
    assert ShardSet(folder).index == wanted


@pytest.mark.parametrize(("what", "message"), [
    ("absent", r"gate\.student is .*, which is no file; give a student\.safetensors"),
    ("garbage", r"student\.safetensors .*"),
    ("cut", r"student\.safetensors .*"),
    ("classes", r"the student .* knows the classes a, b, .*set generate\.gate\.student"),
])  # fmt: skip
def test_a_student_that_cannot_be_used_is_refused_before_a_pair_is_made(
    student_file, tmp_path, on_the_cpu, what, message
):
    if what == "absent":
        student_file.unlink()
    elif what == "garbage":
        student_file.write_bytes(b"no weights at all")
    elif what == "cut":
        student_file.write_bytes(student_file.read_bytes()[:-9])
    else:
        net, facts = load_student(student_file)
        names = ClassTable(("a", "b", "c", "d", "e"), OSD_CLASSES.colours)
        save_student(student_file, net, StudentConfig.model_validate(facts["student"]), names, {})
    config = gated(tmp_path / "run", 3, student=str(student_file), agreement={"at_least": 0.0})
    with pytest.raises(ValueError, match=message) as error:
        generate(config)
    assert "damaged, all others are there" not in str(error.value)
    assert list((tmp_path / "run" / "generate").glob("shard-*")) == []


def test_a_student_takes_part_and_its_weights_are_recorded(student_file, tmp_path, on_the_cpu):
    config = gated(tmp_path / "run", 3, student=str(student_file), agreement={"at_least": 0.0})
    folder = generate(config)
    assert all(0 <= verdict["agreement"] <= 1 for verdict in verdicts(folder))
    assert ShardSet(folder).index.provenance["gate"]["student"] == weights_hash(student_file)


# --- the run's own student --------------------------------------------------------------------------------------------


def test_the_word_real_is_the_runs_own_student(tmp_path, student_file, on_the_cpu, monkeypatch):
    settings = {"gate": {"enabled": True, "student": "real", "agreement": {"at_least": 0.0}}, "num_samples": 4}
    config = with_teacher(tmp_path / "run", **settings)
    with pytest.raises(ValueError, match=r"student of the set real.*run dakd train_saross --training-set real first"):
        generate(config)
    assert not list((tmp_path / "run" / "generate").glob("shard-*"))
    config.real_student.parent.mkdir(parents=True)
    shutil.copy(student_file, config.real_student)
    generate(config)
    named = with_teacher(tmp_path / "named", **settings | {"gate": settings["gate"] | {"student": str(student_file)}})
    generate(named)
    own, other = ((one.run_path / "generate" / "verdicts.jsonl").read_text() for one in (config, named))
    assert own == other and all(json.loads(line)["agreement"] is not None for line in own.splitlines())
    # The measures go by the file's hash, whatever it is called.
    folders = [{path.name for path in (one.run_path / "generate" / "measures").iterdir()} for one in (config, named)]
    assert folders[0] == folders[1] and len(folders[0]) == 1
    assert ShardSet(config.run_path / "generate").index.provenance["gate"]["student"] == weights_hash(student_file)
    verify_set(config)
    # A file of that name in the current folder is ./real.
    monkeypatch.chdir(tmp_path)
    shutil.copy(student_file, "real")
    config.real_student.unlink()
    file = Gate(config.generate.gate.model_copy(update={"student": "./real"}), OSD_CLASSES)
    assert file.facts["student"] == weights_hash(student_file)
    with pytest.raises(ValueError, match=r"there is no .*student\.safetensors yet"):
        status(config)

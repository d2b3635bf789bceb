"""Jobs are done once, by any worker; a failed job is reported and tried again; finished jobs stay."""

from __future__ import annotations

import multiprocessing
import signal

import pytest
from ablate_worlds import SOFT, plan_of

from dakd.ablate import run
from dakd.ablate.run import JobStore, work
from dakd.data.shards import ShardSet
from dakd.runtime.lock import locked
from dakd.runtime.sealed import write_json
from dakd.runtime.stopping import Preempted
from dakd.runtime.tensor_files import weights_hash
from dakd.weights import load_student


@pytest.fixture
def done_steps(monkeypatch):
    """The steps that were called, in place of doing them: (step, options, job's folder)."""
    calls = []

    def do(step, options, config):
        calls.append((step, tuple(options), config.run_path.name))

    monkeypatch.setattr(run, "_do_here", do)
    return calls


def test_all_jobs_are_done_in_their_order_and_once(tmp_path, done_steps):
    plan, store = plan_of({"name": "real"}, SOFT), JobStore(tmp_path)
    unfinished = work(plan, store, processes=0)
    assert not unfinished.failed and all(store.is_done(job) for job in plan.jobs)
    steps = [f"{step} {' '.join(options)}".strip() for step, options, _ in done_steps]
    assert steps == [
        "prepare", "train_saross --training-set real", "evaluate", "train_jointnet --stage 1",
        "train_jointnet --stage 2", "train_jointnet --stage 3", "generate",
        "train_saross --training-set real+synthetic", "evaluate",
    ]  # fmt: skip
    work(plan, store, processes=0)
    assert len(done_steps) == len(steps)
    record = store.record(plan.jobs[0])
    assert record["digest"] == plan.jobs[0].digest and record["seconds"] >= 0 and record["commit"]


def test_a_job_finds_what_it_builds_on_linked_into_its_folder(tmp_path, done_steps):
    plan, store = plan_of(SOFT), JobStore(tmp_path / "store")
    work(plan, store, processes=0)
    by_kind = {job.kind: store.folder_of(job) for job in plan.jobs}
    (by_kind["prepare"] / "prepare").mkdir()
    assert (by_kind["student"] / "prepare").resolve() == (by_kind["prepare"] / "prepare").resolve()
    links = {path: (by_kind["teacher"] / path).readlink() for path in ("prepare", "train_jointnet/stage1")}
    assert all(not link.is_absolute() for link in links.values())
    (tmp_path / "store").rename(tmp_path / "moved")  # links stay good
    assert (tmp_path / "moved" / by_kind["student"].name / "prepare").is_dir()


def test_nothing_is_built_on_a_job_whose_record_is_another_jobs(tmp_path, done_steps):
    plan, store = plan_of({"name": "real"}), JobStore(tmp_path)
    first, student = plan.jobs[:2]
    store.folder_of(first).mkdir()
    write_json(store.folder_of(first) / "job.json", {"job": "prepare-of-another", "seconds": 1})
    failed = work(plan, store, processes=0).failed
    assert list(failed) == [student.name] and not done_steps
    assert f"the record of prepare-of-another; expected that of {first.name}; remove" in failed[student.name]


@pytest.mark.parametrize("is_link", [True, False])
def test_a_job_is_not_done_from_what_lies_where_its_link_belongs(tmp_path, done_steps, is_link):
    plan, store = plan_of({"name": "real"}), JobStore(tmp_path)
    student = store.folder_of(plan.jobs[1])
    (tmp_path / "other").mkdir()
    student.mkdir()
    if is_link:
        (student / "prepare").symlink_to(tmp_path / "other")
    else:
        (student / "prepare").mkdir()
    failed = work(plan, store, processes=0).failed
    assert list(failed) == [student.name] and [step for step, _, _ in done_steps] == ["prepare"]
    found = f"a link to {tmp_path / 'other'}" if is_link else "no link"
    expected = store.folder_of(plan.jobs[0]) / "prepare"
    assert f"{student / 'prepare'} is {found}; expected a link to {expected}; move it away" in failed[student.name]


def test_a_failed_job_is_reported_its_followers_are_left_out_and_all_others_done(tmp_path, monkeypatch):
    plan, store = plan_of({"name": "real"}, SOFT), JobStore(tmp_path)
    is_broken = True

    def do(step, options, config):
        if step == "generate" and is_broken:
            raise ValueError("no pairs today")

    monkeypatch.setattr(run, "_do_here", do)
    unfinished = work(plan, store, processes=0)
    assert list(unfinished.failed.values()) == ["no pairs today"] and len(unfinished.blocked) == 2
    done = {job.kind for job in plan.jobs if store.is_done(job)}
    assert done == {"prepare", "stage1", "teacher", "student", "scores"}
    is_broken = False
    assert not work(plan, store, processes=0).failed
    assert all(store.is_done(job) for job in plan.jobs)


def test_a_job_of_another_worker_is_left_to_it(tmp_path, done_steps, monkeypatch):
    plan, store = plan_of({"name": "real"}), JobStore(tmp_path)
    prepare = plan.jobs[0]
    waits = []

    def finish_elsewhere(_):
        waits.append(1)
        (store.folder_of(prepare)).mkdir(parents=True, exist_ok=True)
        write_json(store.folder_of(prepare) / "job.json", {"seconds": 1})

    monkeypatch.setattr(run.time, "sleep", finish_elsewhere)
    with locked(store.folder / "locks" / prepare.name):
        work(plan, store, processes=0)
    assert waits == [1] and "prepare" not in [step for step, _, _ in done_steps]


def test_a_stop_leaves_the_job_undone_and_ends_the_work(tmp_path, monkeypatch):
    plan, store = plan_of({"name": "real"}), JobStore(tmp_path)

    def do(step, options, config):
        if step == "train_saross":
            raise Preempted("stopped after step 3 of 9")

    monkeypatch.setattr(run, "_do_here", do)
    with pytest.raises(Preempted):
        work(plan, store, processes=0)
    assert {job.kind for job in plan.jobs if store.is_done(job)} == {"prepare"}
    monkeypatch.setattr(run, "_do_here", lambda *_: None)
    work(plan, store, processes=0)  # the lock of the job was given back
    assert all(store.is_done(job) for job in plan.jobs)


def _work_apart(folder, first, log):
    def do(step, options, config):
        with open(log, "a") as stream:
            stream.write(f"{config.run_path.name} {step} {' '.join(options)}\n")
        run.time.sleep(0.05)

    run._do_here, run._POLL_S = do, 0.02
    work(plan_of({"name": "real"}, SOFT, seeds=(0, 1)), JobStore(folder), processes=0, first=first)


def test_workers_that_come_together_do_every_job_once(tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    workers = [context.Process(target=_work_apart, args=(tmp_path / "store", first, log)) for first in (0, 4, 9)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    lines = log.read_text().splitlines()
    plan = plan_of({"name": "real"}, SOFT, seeds=(0, 1))
    assert len(lines) == len(set(lines)) == sum(len(job.steps) for job in plan.jobs)


def test_a_killed_workers_job_is_taken_by_the_next(tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    worker = context.Process(target=_work_apart, args=(tmp_path / "store", 0, log))
    worker.start()
    while not log.exists():
        run.time.sleep(0.01)
    worker.kill()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    _work_apart_here = context.Process(target=_work_apart, args=(tmp_path / "store", 0, log))
    _work_apart_here.start()
    _work_apart_here.join(60)
    assert _work_apart_here.exitcode == 0
    store = JobStore(tmp_path / "store")
    assert all(store.is_done(job) for job in plan_of({"name": "real"}, SOFT, seeds=(0, 1)).jobs)


def test_a_row_of_refined_pairs_finds_its_student_and_its_pairs(tmp_path):
    gate = {"generate.gate.enabled": True, "generate.gate.student": "real"}
    row = SOFT | {"set": gate | {"refine.pixel_gate": 1.0, "refine.repeats": 2, "train_saross.steps": 1}}
    plan, store = plan_of(row), JobStore(tmp_path)
    unfinished = work(plan, store, processes=0)
    assert not unfinished.failed and all(store.is_done(job) for job in plan.jobs)
    jobs = {job.kind if job.kind != "student" else job.steps[0][2]: store.folder_of(job) for job in plan.jobs}
    own = weights_hash(jobs["real"] / "train_saross" / "real" / "student.safetensors")
    refined = ShardSet(jobs["refine"] / "refine").index
    assert ShardSet(jobs["generate"] / "generate").index.provenance["gate"]["student"] == own
    assert refined.provenance["refined"]["student"] == own and refined.num_samples == 30
    _, facts = load_student(jobs["real+synthetic"] / "train_saross" / "real+synthetic" / "student.safetensors")
    assert refined.fingerprint in facts["data"] and facts["num_synthetic"] == 30

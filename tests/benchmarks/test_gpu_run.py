"""A visit to a GPU host: a job that fails costs no other job, and the visit makes the right calls in its time."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_run
import pytest
import torch
from gpu import cases, correctness, facts, gpu_tests, nets, races, second_visit, workers
from gpu.visit import FIRST_TABLES, SECOND_TABLES, Visit
from lib.device import DEVICE_VARIABLE
from lib.op_race import OpRace, parse

from dakd.kernels import backend
from dakd.testing.inputs import MODEL_LAYOUT

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_run.py"


def run_script(*arguments, **environment):
    command = [sys.executable, SCRIPT, *arguments]
    kept = {name: value for name, value in os.environ.items() if name not in ("OUT", "PYTHONPATH")}
    return subprocess.run(command, capture_output=True, text=True, env=kept | environment)


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def outcomes_of(tmp_path, jobs, *, limit_s=30.0, num_workers=1, plant=None):
    crew = workers.Workers(tmp_path / "log.txt", plant or {})
    phase = workers.Phase("phase", limit_s, jobs, num_workers)
    return {outcome.job: outcome for outcome in crew.run(phase, time.monotonic() + 60)}


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid):
    until = time.monotonic() + 10  # a busy machine takes a moment to end what was killed
    while is_alive(pid):
        assert time.monotonic() < until
        time.sleep(0.1)


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_jobs_end_is_named_and_costs_no_other_job(tmp_path):
    def wrong():
        raise workers.Wrong("12 times its budget")

    def failing():
        raise ValueError("first line\n\nwhat the compiler said")

    def fine():
        print("a line for the log")
        return "a note"

    jobs = [
        workers.Job("wrong", wrong, 20),
        workers.Job("failing", failing, 20),
        workers.Job("leaving", lambda: sys.exit(7), 20),
        workers.Job("crashing", fine, 20),
        workers.Job("hanging", fine, 3),
        workers.Job("absent", fine, 20, skip="no GPU"),
        workers.Job("fine", fine, 20),
    ]
    found = outcomes_of(tmp_path, jobs, plant={"crashing": "crash", "hanging": "hang"})
    assert {name: outcome.status for name, outcome in found.items()} == {
        "wrong": "WRONG", "failing": "FAILED", "leaving": "FAILED", "crashing": "crashed (SIGSEGV)",
        "hanging": "timed out", "absent": "skipped", "fine": "ok",
    }  # fmt: skip
    assert found["wrong"].note == "12 times its budget"
    assert found["failing"].note == "ValueError: first line ... what the compiler said"
    assert found["fine"].note == "a note" and found["absent"].note == "no GPU"
    log = (tmp_path / "log.txt").read_text()
    assert "a line for the log" in log and "Traceback" in log and "== crashing" in log


def test_jobs_of_a_phase_run_at_once_and_a_late_one_is_not_started(tmp_path):
    def sleep():
        time.sleep(2)

    jobs = [workers.Job(str(number), sleep, 20) for number in range(4)]
    start = time.monotonic()
    found = outcomes_of(tmp_path, jobs, num_workers=4)
    assert time.monotonic() - start < 7 and all(outcome.status == "ok" for outcome in found.values())
    found = outcomes_of(tmp_path, jobs[:2], limit_s=4.0)
    assert [found[name].status for name in ("0", "1")] == ["ok", "no time left"]


def test_what_a_hanging_job_has_started_ends_with_it(tmp_path):
    def hang():
        child = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pid").write_text(str(child.pid))
        time.sleep(60)

    assert outcomes_of(tmp_path, [workers.Job("hanging", hang, 3)])["hanging"].status == "timed out"
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_lines_of_jobs_that_write_at_once_are_whole(tmp_path):
    visit = Visit("cpu", True, tmp_path)
    visit.start_tables(FIRST_TABLES)

    def write(number):
        def job():
            for line in range(50):
                visit.fact("phase", f"{number}.{line}", line, note="x" * 300)

        return job

    outcomes_of(tmp_path, [workers.Job(str(number), write(number), 20) for number in range(4)], num_workers=4)
    rows = read(tmp_path / "facts.csv")
    assert sorted(row["name"] for row in rows) == sorted(f"{n}.{line}" for n in range(4) for line in range(50))
    assert all(row["note"] == "x" * 300 and row["date"] for row in rows)


def test_the_parent_lives_on_one_core_of_python_and_starts_no_cuda():
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
import gpu_run, torch
from pathlib import Path
gpu_run._import_for_children(gpu_run.Visit("cpu", True, Path("/nowhere")))
import threading
assert threading.active_count() == 1, threading.enumerate()
assert not torch.cuda.is_initialized()
assert "torch._dynamo" in sys.modules and "dakd.kernels.seg_loss.api" in sys.modules
print("clean")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("clean"), done.stderr


# --- what a visit would call ------------------------------------------------------------------------------------------


@pytest.fixture
def visit(tmp_path, monkeypatch):
    """A visit to a GPU that is not here: its phases can be made, not run."""
    monkeypatch.setenv(DEVICE_VARIABLE, "NVIDIA H200")
    return Visit("cuda", False, tmp_path)


def test_a_real_visit_checks_every_variant_in_the_layout_of_the_models(visit):
    names = [job.name for job in correctness.phase(visit).jobs]
    assert names[0] == "transposed_attention triton bf16"  # what no CPU can run comes first
    for op in backend.OPS:
        for name in ("triton", "cuda"):
            if name in backend.variants(op):
                assert {f"{op} {name} {dtype}" for dtype in ("bf16", "fp16", "fp32")} <= set(names)
                assert f"{op} {name} repeats" in names
        checked = cases.checked(op, "bf16")
        assert {MODEL_LAYOUT[op], "contiguous"} == {call.layout for call in checked}
        assert {"odd", "main with batch 2"} == {call.shape for call in checked}
    assert names.index("seg_loss cuda bf16") < names.index("transposed_attention triton fp32")


def test_a_real_visit_races_every_op_on_the_models_path_first():
    raced = cases.raced()
    assert [call.op for call in raced[: len(backend.OPS)]] == list(backend.OPS)
    assert all(call.layout == MODEL_LAYOUT[call.op] for call in raced[: len(backend.OPS)])
    assert len({(call.op, str(call.sizes), call.layout, call.options) for call in raced}) == len(raced)
    for call in raced:
        parsed = parse(call.op, [*call.words, "--device", "cuda"])
        assert list(parsed.shapes.values()) == [call.sizes] and parsed.dtype == "bf16"


def test_operands_of_a_call_lie_as_its_layout_says():
    call = cases.checked("seg_loss", "bf16")[1]
    with torch.device("meta"):
        inputs = cases.op_race(call, "--device", "meta").operands(call.sizes, 0)
    assert call.layout == "channels_last" and inputs["logits"].stride(1) == 1
    assert inputs["teacher"].is_contiguous() and inputs["teacher"].dtype == torch.float16  # as the shards hold it
    (call,) = [call for call in cases.checked("selective_scan", "bf16") if call.layout == "tokens"]
    with torch.device("meta"):
        inputs = cases.op_race(call, "--device", "meta").operands(call.sizes, 0)
    assert inputs["u"].stride(1) == 1 and inputs["u"].dtype == torch.bfloat16 and inputs["A"].dtype == torch.float32


def test_phases_fit_into_the_visit(visit):
    phases = (facts.phase, correctness.phase, races.phase, nets.unet_phase, nets.loop_phase, nets.train_phase,
              races.compiled_phase)  # fmt: skip
    made = [*(phase(visit) for phase in phases), gpu_tests.phase(visit, 30)]
    facts_s = 25  # more only where the extension has to be built
    assert facts_s + sum(phase.limit_s for phase in made[1:]) <= gpu_run.FIRST_S
    phases = (nets.candidates_phase, second_visit.pipeline_phase, second_visit.races_phase,
              nets.training_families_phase, second_visit.counters_phase, second_visit.memcheck_phase)  # fmt: skip
    later = [second_visit.recheck_phase(visit, ("seg_loss",)), *(phase(visit) for phase in phases),
             second_visit.variants_phase(visit, ()), nets.compiled_step_phase(visit, 35)]  # fmt: skip
    assert 15 + sum(phase.limit_s for phase in later) <= gpu_run.SECOND_S
    for phase in (*made, *later):
        assert len({job.name for job in phase.jobs}) == len(phase.jobs) > 0
        assert all(job.limit_s > 0 for job in phase.jobs), phase.name
    assert len(FIRST_TABLES) + 1 <= 8 and len(SECOND_TABLES) + 1 <= 8  # with the log


def test_a_call_that_raises_is_no_wrong_number_and_costs_no_other_call(tmp_path, monkeypatch):
    visit = Visit("cpu", True, tmp_path)
    visit.start_tables(FIRST_TABLES)
    errors = OpRace.errors

    def failing(race, name, sizes, seed):
        if seed == 0:
            raise ValueError("no kernel image")
        return errors(race, name, sizes, seed)

    monkeypatch.setattr(OpRace, "errors", failing)
    with pytest.raises(RuntimeError, match="1 calls raised, such as tiny channels_last: ValueError: no kernel image"):
        correctness._check(visit, "transposed_attention", "reference", "fp32")
    verdicts = [(row["layout"], row["verdict"]) for row in read(tmp_path / "correct.csv")]
    assert verdicts[0] == ("channels_last", "raised") and set(verdicts[1:]) == {("contiguous", "ok")}


@pytest.mark.parametrize("ratio", [1.5, float("nan")])
def test_a_number_over_its_budget_is_wrong_whatever_else_raised(ratio):
    with pytest.raises(workers.Wrong, match="job: dq is"):
        correctness._judge("job", {"y": 0.5, "dq": ratio}, ["odd: ValueError"])
    assert correctness._judge("job", {"y": 0.5, "dq": 0.7}, []) == "at most 0.7 of the budget (dq)"
    assert correctness._judge("job", {}, []) == "absent"


def test_the_second_visit_rechecks_what_the_first_left_unsettled(tmp_path):
    visit = Visit("cpu", True, tmp_path)
    visit.start_tables(FIRST_TABLES)
    ended = {"seg_loss cuda bf16": "WRONG", "ddim_step triton bf16": "crashed (SIGSEGV)", "ddim_step triton fp32": "ok",
             "selective_scan triton repeats": "timed out", "joint_noising cuda fp16": "no time left"}  # fmt: skip
    for name, status in ended.items():
        visit.fact("correct", f"job {name}", status)
    visit.fact("races", "job race ddim_step main channels_last", "FAILED")  # no check
    visit.fact("recheck", "job ddim_step triton bf16", "ok")  # fixed since
    unsettled = ("seg_loss cuda bf16", "selective_scan triton repeats", "joint_noising cuda fp16")
    assert second_visit.unsettled_jobs(tmp_path) == unsettled
    assert second_visit.unsettled_jobs(tmp_path / "nowhere") == ()
    assert {job.name for job in second_visit.recheck_phase(visit, ("seg_loss",)).jobs} == {
        f"seg_loss {name} {what}" for name in ("cpu", "reference") for what in ("bf16", "fp32", "repeats")
    }


def test_the_second_visit_runs_the_files_of_failed_tests_again(tmp_path):
    visit = Visit("cpu", True, tmp_path)
    visit.start_tables(FIRST_TABLES)
    assert second_visit.failed_test_files(tmp_path) == second_visit.failed_test_files(tmp_path / "nowhere") == ()
    for name in ("tests/kernels/test_b.py::test_x[1]", "tests/kernels/test_a.py::test_y", "tests/kernels/test_b.py::z"):
        visit.fact("tests", "failed test", name)
    assert second_visit.failed_test_files(tmp_path) == ("tests/kernels/test_b.py", "tests/kernels/test_a.py")


def test_the_second_visit_races_again_what_was_not_replayed_from_graphs(tmp_path):
    visit = Visit("cpu", True, tmp_path)
    visit.start_tables(FIRST_TABLES)
    cells = dict(op="ddim_step", shape="main", layout="channels_last", contestant="triton", time_us=1.0)
    visit.add("races", **cells, what="forward", method="graph")
    visit.add("races", **cells | dict(shape="batch 64"), what="forward eta=1", method="graph")
    seg_loss = cells | dict(op="seg_loss")
    visit.add("races", **seg_loss, what="forward", method="graph")
    visit.add("races", **seg_loss, what="forward+backward", method="events")
    assert second_visit._captured_races(tmp_path) == {
        ("ddim_step", "main", "channels_last"), ("ddim_step", "batch 64", "channels_last eta=1")
    }  # fmt: skip
    main = cases.Case("ddim_step", "main", cases.SHAPES["ddim_step"]["main"], "bf16", "channels_last")
    assert second_visit._race_key(main) == ("ddim_step", "main", "channels_last")
    further = [case for case in cases.raced() if case.options]
    assert [second_visit._race_key(case)[1:] for case in further] == [
        ("batch=64,num_classes=5,height=256,width=256", "channels_last eta=1")
    ]


def test_counters_are_taken_of_the_ops_farthest_from_their_floor(tmp_path):
    visit = Visit("cpu", True, tmp_path)
    visit.start_tables(FIRST_TABLES)
    shares = {"seg_loss": 0.8, "ddim_step": 0.9, "selective_scan": 0.2, "joint_noising": 0.5}
    for op, share in shares.items():
        for contestant, part in (("triton", share), ("eager", 0.01)):
            visit.add("races", op=op, shape="main", contestant=contestant, time_us=1.0, copy_share=part)
    assert second_visit.farthest(tmp_path) == ["selective_scan", "joint_noising", "seg_loss"]
    assert set(second_visit.farthest(tmp_path / "nowhere")) <= set(backend.OPS)


def test_counters_are_read_from_behind_the_programs_own_output():
    text = ('called: seg_loss\n==PROF== Connected\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
            '"0","backward_kernel","Duration","us","12.3"\n"0","backward_kernel","","",""\n')  # fmt: skip
    assert second_visit.counters(text) == [("backward_kernel", "Duration", "us", "12.3")]
    assert second_visit.counters("==ERROR== no permission\n") == []


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>", "layout"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "conv"),
        ("void at::native::RowwiseMomentsCUDAKernel<c10::BFloat16>", "group norm"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::silu_kernel", "silu"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_TNN", "matmul"),
        ("void at::native::CatArrayBatchedCopy_vectorized", "cat"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("void at::native::elementwise_kernel<128, 4, CUDAFunctor_add>", "add and other pointwise"),
        ("something else", "other"),
    ],
)
def test_kernels_are_sorted_into_families(kernel, family):
    assert nets.family_of(kernel) == family


# --- the whole of it --------------------------------------------------------------------------------------------------


def refused(monkeypatch, capsys, folder, *arguments):
    """What the script prints when it exits at once."""
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", *arguments])
    monkeypatch.setenv("OUT", str(folder))
    with pytest.raises(SystemExit) as stopped:
        gpu_run.main()
    assert stopped.value.code != 0 and list(folder.iterdir()) == []
    return f"{capsys.readouterr().err}{stopped.value.code}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_an_error_that_names_what_is_needed(tmp_path):
    done = run_script(OUT=str(tmp_path))
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr and "--device cpu --tiny" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cpu"], "add --tiny"),
        (["--device", "cpu", "--tiny", "--plant", "fire:job"], "expected FAULT:JOB"),
        (["--device", "cpu", "--tiny", "--only", "train-step"], "no phase is called train-step; there are facts, "),
        (["--device", "cpu", "--tiny", "--second", "--variant", "_BLOCK"], "invalid choice: '_BLOCK' (choose from"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(arguments, words, monkeypatch, capsys, tmp_path):
    assert words in refused(monkeypatch, capsys, tmp_path, *arguments)


def test_a_phase_that_cannot_be_made_costs_no_other_phase(tmp_path, monkeypatch):
    def broken(_run):
        raise ValueError("no such shape")

    monkeypatch.setattr(gpu_run.races, "phase", broken)
    monkeypatch.setattr(gpu_run.nets, "loop_phase", lambda run: workers.Phase("loop", 20, [workers.Job("x", str, 20)]))
    # Time counts from the start of the process, which here has made other tests before.
    options = ["--device", "cpu", "--tiny", "--total-s", "100000", "--only", "races", "--only", "loop"]
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", *options])
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_run.main() == 1
    found = {(row["phase"], row["name"]): row for row in read(tmp_path / "facts.csv")}
    assert found["races", "job phase"]["value"] == "FAILED" and "no such shape" in found["races", "job phase"]["note"]
    assert found["loop", "job x"]["value"] == "ok"

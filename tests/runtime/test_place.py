"""A launcher's variables that say no place are refused, with what was found and what to unset."""

from __future__ import annotations

import pytest

from dakd.cli import main
from dakd.runtime.place import (
    PLACE_VARIABLES,
    check_address,
    check_place,
    hint_about_slurm,
    refuse_launcher,
    refuse_mpi,
    seconds,
)
from dakd.runtime.slurm import array_task, set_rank_from_slurm

TASK = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_NODEID": "1", "SLURM_PROCID": "2", "SLURM_LOCALID": "0",
}  # fmt: skip


def variables(text):
    return dict(pair.split("=") for pair in text.split())


@pytest.mark.parametrize(
    "left_over, message",
    [
        ("RANK=0", r"RANK is 0, and WORLD_SIZE is not set; expected both or neither; .*unset RANK"),
        ("WORLD_SIZE=2", r"WORLD_SIZE is 2, and RANK is not set; expected both or neither; .*unset WORLD_SIZE"),
        ("LOCAL_RANK=3", r"LOCAL_RANK is 3, and RANK is not set.*unset LOCAL_RANK"),
        ("RANK=2 WORLD_SIZE=2", r"RANK is 2, and WORLD_SIZE is 2; expected RANK below WORLD_SIZE; .*unset RANK"),
        ("RANK=x WORLD_SIZE=2", r"RANK is 'x'; expected a whole number, 0 or more; to run alone: unset RANK"),
        ("RANK=-1 WORLD_SIZE=2", r"RANK is '-1'"),
        ("RANK=0 WORLD_SIZE=0", r"WORLD_SIZE is '0'; expected a whole number, 1 or more"),
        ("RANK=0 WORLD_SIZE=2.0", r"WORLD_SIZE is '2.0'"),
        ("RANK=0 WORLD_SIZE=٢", r"WORLD_SIZE is '٢'"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", r"LOCAL_RANK is 2, and LOCAL_WORLD_SIZE is 2"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=4", r"LOCAL_WORLD_SIZE is 4, and WORLD_SIZE is 2"),
        ("RANK=0 WORLD_SIZE=2 MASTER_PORT=70000", r"MASTER_PORT is 70000; expected a port"),
    ],
)
def test_variables_that_say_no_place_are_refused(left_over, message):
    with pytest.raises(ValueError, match=message):
        check_place(variables(left_over))


@pytest.mark.parametrize(
    "complete",
    ["", "WORLD_SIZE=1", "RANK=0 WORLD_SIZE=1", "LOCAL_RANK=0", "RANK= WORLD_SIZE=", "MASTER_ADDR=gone MASTER_PORT=1",
     "RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=h MASTER_PORT=29500"],
)  # fmt: skip
def test_variables_that_say_a_place_or_nothing_are_accepted(complete):
    check_place(variables(complete))
    check_address(variables(complete))


@pytest.mark.parametrize("given, missing", [("", "MASTER_ADDR and MASTER_PORT"), (" MASTER_ADDR=h", "MASTER_PORT")])
def test_ranks_without_a_place_to_meet_are_refused(given, missing):
    with pytest.raises(ValueError, match=rf"RANK=0, WORLD_SIZE=2.*, and {missing} not set"):
        check_address(variables("RANK=0 WORLD_SIZE=2" + given))


def test_below_mpirun_a_process_does_not_take_itself_for_the_only_one():
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        with pytest.raises(ValueError, match=rf"{name} is 4 \(mpirun\), and RANK is not set; .*unset {name}"):
            refuse_mpi({name: "4"})
        refuse_mpi({name: "1"})
        refuse_mpi({name: "4", "RANK": "0"})


def test_a_command_that_starts_ranks_is_refused_as_one_of_several():
    refuse_launcher("pipeline", variables("RANK=0 WORLD_SIZE=1"))
    with pytest.raises(ValueError, match=r"RANK=1, WORLD_SIZE=2, and `dakd pipeline` starts the ranks itself"):
        refuse_launcher("pipeline", variables("RANK=1 WORLD_SIZE=2"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"SLURM_STEP_TASKS_PER_NODE": None, "SLURM_NODEID": ""}, "SLURM_STEP_TASKS_PER_NODE, SLURM_NODEID not set"),
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID is 4; expected SLURM_PROCID below it"),
        ({"SLURM_NODEID": "2"}, r"SLURM_STEP_TASKS_PER_NODE is '2\(x2\)', and SLURM_NODEID is 2"),
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_STEP_TASKS_PER_NODE is 'many'"),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS is 'two'"),
    ],
)
def test_parts_of_sruns_variables_are_refused_and_nothing_is_set(changes, message):
    environ = {name: value for name, value in (TASK | changes).items() if value is not None}
    before = dict(environ)
    with pytest.raises(ValueError, match=f"{message}.*unset SLURM_"):
        set_rank_from_slurm(environ)
    assert environ == before


def test_empty_variables_are_as_good_as_none():
    environ = {"RANK": "", "WORLD_SIZE": " ", **TASK}
    set_rank_from_slurm(environ)
    assert (environ["RANK"], environ["WORLD_SIZE"]) == ("2", "4")


def test_a_job_of_several_tasks_hears_that_it_runs_alone():
    assert "SLURM_NTASKS is 8" in hint_about_slurm({"SLURM_NTASKS": "8"}) and "srun" in hint_about_slurm(
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    )
    for silent in ({}, {"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}):
        assert hint_about_slurm(silent) == ""


def test_an_array_without_numbers_is_refused():
    with pytest.raises(ValueError, match="SLURM_ARRAY_TASK_ID is 'a'"):
        array_task({"SLURM_ARRAY_TASK_ID": "a"})


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_a_limit_that_is_no_time_is_refused(text):
    assert seconds("LIMIT", 5.0, {}) == 5.0 and seconds("LIMIT", 5.0, {"LIMIT": "0.5"}) == 0.5
    with pytest.raises(ValueError, match=rf"LIMIT is '{text}'; expected seconds"):
        seconds("LIMIT", 5.0, {"LIMIT": text})


@pytest.mark.parametrize("left_over", ["RANK=1", "RANK=one WORLD_SIZE=2", "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2"])
def test_a_command_ends_in_one_message(left_over, monkeypatch, capsys):
    for name in (*PLACE_VARIABLES, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables(left_over).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["dakd", "config", "show", "demo"])
    assert main() == 1
    error = capsys.readouterr().err
    assert error.startswith("dakd config: ") and error.count("\n") == 1 and "unset" in error

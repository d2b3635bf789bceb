"""A task of srun learns its place from SLURM's variables, and nothing else mistakes them."""

from __future__ import annotations

import pytest

from dakd.runtime.slurm import first_host, set_rank_from_slurm, tasks_of_node


def task(**changes):
    """The environment of the third task of a step of two nodes with two tasks each."""
    variables = {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_NODEID": "1", "SLURM_PROCID": "2", "SLURM_LOCALID": "0",
    }  # fmt: skip
    return {name: value for name, value in (variables | changes).items() if value is not None}


def test_a_task_takes_rank_world_and_address(monkeypatch):
    environ = task()
    set_rank_from_slurm(environ)
    wanted = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu03"}
    assert wanted.items() <= environ.items() and 15000 <= int(environ["MASTER_PORT"]) < 30000


def test_all_tasks_of_a_step_take_one_port_and_another_step_another():
    ports = []
    for changes in ({}, {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "4712"}):
        environ = task(**changes)
        set_rank_from_slurm(environ)
        ports.append(environ["MASTER_PORT"])
    assert ports[0] == ports[1] and len(set(ports)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": None},  # the batch script itself, which SLURM numbers 0 too
        {"SLURM_STEP_NUM_TASKS": "1"},  # a step of one task, that may start a launcher
        {"SLURM_PROCID": None},
    ],
)
def test_what_is_no_task_among_several_takes_nothing(changes):
    environ = task(**changes)
    set_rank_from_slurm(environ)
    assert "RANK" not in environ and "WORLD_SIZE" not in environ


def test_another_launchers_place_and_a_set_address_stay():
    environ = task(RANK="7", WORLD_SIZE="8")
    set_rank_from_slurm(environ)
    assert environ["RANK"] == "7" and "MASTER_ADDR" not in environ
    environ = task(MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    set_rank_from_slurm(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize("visible, wanted", [("3", "0"), ("0,1,2,3", "1")])
def test_a_task_that_sees_its_own_gpu_alone_takes_number_0(visible, wanted):
    environ = task(SLURM_LOCALID="1", CUDA_VISIBLE_DEVICES=visible)
    set_rank_from_slurm(environ)
    assert environ["LOCAL_RANK"] == wanted


@pytest.mark.parametrize("counts, wanted", [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("1,3(x2)", [1, 3, 3])])
def test_tasks_of_a_node_are_read_from_the_short_form(counts, wanted):
    assert [tasks_of_node(counts, node) for node in range(len(wanted))] == wanted


@pytest.mark.parametrize(
    "nodes, wanted", [("gpu[003-006,9],login", "gpu003"), ("n1,n2", "n1"), ("a-b.c[7]", "a-b.c7"), ("solo", "solo")]
)
def test_the_first_host_of_a_node_list(nodes, wanted):
    assert first_host(nodes) == wanted

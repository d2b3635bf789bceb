"""`make mutants`: its list fits the sources, it restores what it mutates, and a survivor is seen."""

from __future__ import annotations

from mutants import run
from mutants.faults import FAULTS, Fault

SOURCE = "def larger(a, b):\n    if a > b:\n        return a\n    return b\n"
CHECK = "from small import larger\n\n\ndef test_the_larger():\n    assert larger(1, 2) == 2\n"


def small_tree(folder, check=CHECK):
    (folder / "small.py").write_text(SOURCE)
    (folder / "test_small.py").write_text(check)
    return folder


def fault(line, mutated, tests=("test_small.py::test_the_larger",)):
    return Fault("small.py", line, mutated, tests)


def test_every_fault_of_the_list_can_be_made():
    assert run.misfits(FAULTS, run.ROOT) == ""


def test_every_area_that_decides_a_number_or_a_file_has_faults():
    areas = {one.area for one in FAULTS}
    expected = "runtime kernels config data models diffusion train generate evaluate metrics predict weights hub"
    assert areas >= {*expected.split(), "card", "report", "cli", "pipeline", "ablate"} and len(FAULTS) >= 60


def test_a_line_that_is_gone_or_there_twice_and_a_doubled_fault_are_named(tmp_path):
    tree = small_tree(tmp_path)
    (tree / "small.py").write_text(SOURCE + SOURCE)
    good, gone = fault("return b", "return a"), fault("return c", "return a")
    assert "found 2 times, expected once: return b" in run.misfits([good], tree)
    small_tree(tmp_path)
    assert run.misfits([good], tree) == ""
    assert "found 0 times, expected once: return c" in run.misfits([gone], tree)
    assert "twice in the list" in run.misfits([good, good], tree)
    assert "no test is called test_small.py::test_gone" in run.misfits(
        [fault("return b", "return a", ("test_small.py::test_gone",))], tree
    )


def test_a_fault_that_a_test_notices_is_caught_and_one_that_none_does_survives(tmp_path, monkeypatch):
    tree = small_tree(tmp_path)
    noticed, unnoticed = fault("return b", "return a"), fault("return a", "return b")
    assert run.try_fault(noticed, tree) and not run.try_fault(unnoticed, tree)
    monkeypatch.setattr(run, "TIMEOUT_S", 2)
    assert run.try_fault(fault("return b", "while True: pass"), tree)
    assert (tree / "small.py").read_text() == SOURCE
    assert run.run_unchanged(["test_small.py"], tree) == ""


def test_tests_that_fail_without_any_fault_are_shown(tmp_path):
    tree = small_tree(tmp_path, CHECK.replace("== 2", "== 3"))
    assert "assert larger(1, 2) == 3" in run.run_unchanged(["test_small.py"], tree)


def test_the_table_counts_by_area_and_goes_between_its_marks(tmp_path):
    faults = [Fault("dakd/train/optim.py", "", "", ()), Fault("dakd/weights.py", "", "", ())]
    text = run.table([faults[0], *faults], [True, False, True], 60)
    assert "| train | 2 | 1 |\n| weights | 1 | 1 |\n| **all** | **3** | **2** |" in text
    page = tmp_path / "README.md"
    page.write_text(f"before\n{run.BEGIN}\nold\n{run.END}\nafter\n")
    run.put_between_marks(page, text)
    assert page.read_text() == f"before\n{run.BEGIN}\n{text}{run.END}\nafter\n"

"""Mutation testing: each fault of `faults.txt` is put into a copy of the tree, and its tests must fail.

Prints the survivors and a table by area; --out puts the table into tests/README.md. Exit status 1 where a fault
survived, where tests fail without any fault, or where the list no longer fits the sources.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutants.faults import FAULTS, Fault

from dakd.shipped import code_version

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 180  # of the tests of one fault; one that never ends is caught
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"
_NO_TESTS_RAN = (4, 5)  # pytest's exit statuses: a wrong name, and nothing collected


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="faults of files whose path holds this text; repeatable")
    parser.add_argument("--workers", type=int, default=2, help="faults tried at once, each in a copy of the tree")
    parser.add_argument("--out", type=Path, help="put the table into this Markdown file, between its two marks")
    options = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if not options.only or any(part in fault.file for part in options.only)]
    if wrong := misfits(FAULTS, ROOT):
        print(f"tests/mutants/faults.txt does not fit the sources; update the list:\n{wrong}")
        return 1
    if not chosen:
        print(f"no fault is of {', '.join(options.only)}; give a part of a path, such as metrics")
        return 1
    print(f"mutants: {len(chosen)} faults, {options.workers} at once, {code_version()}", flush=True)
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dakd-mutants-") as folder:
        trees = [copy_tree(Path(folder) / str(number)) for number in range(options.workers)]
        print("first the tests without any fault", flush=True)
        if broken := [output for output in in_trees(run_unchanged, shares(chosen, len(trees)), trees) if output]:
            print("\n".join(broken) + "\ntests fail without any fault; mend them first")
            return 1
        caught = in_trees(try_fault, chosen, trees)
    text = table(chosen, caught, time.monotonic() - start_s)
    print("\n" + text)
    if options.out:
        put_between_marks(options.out, text)
    survivors = [fault for fault, is_caught in zip(chosen, caught) if not is_caught]
    for fault in survivors:
        print(f"SURVIVED {fault.file}\n  - {fault.line}\n  + {fault.mutated}\n  tests: {' '.join(fault.tests)}")
    return 1 if survivors else 0


def misfits(faults: Iterable[Fault], root: Path) -> str:
    """A line for each fault that cannot be made: its line is not there exactly once, or its tests are not there."""
    wrong, seen = [], set()
    for fault in faults:
        path = root / fault.file
        lines = [line.strip() for line in path.read_text().splitlines()] if path.is_file() else []
        if (count := lines.count(fault.line)) != 1:
            wrong.append(f"{fault.file}: found {count} times, expected once: {fault.line}")
        if (fault.file, fault.line, fault.mutated) in seen or fault.line == fault.mutated:
            wrong.append(f"{fault.file}: twice in the list, or no change: {fault.mutated}")
        seen.add((fault.file, fault.line, fault.mutated))
        for test in fault.tests:
            file, _, function = test.partition("::")
            text = (root / file).read_text() if (root / file).is_file() else ""
            if not text or (function and f"def {function.partition('[')[0]}(" not in text):
                wrong.append(f"{fault.file}: no test is called {test}")
    return "\n".join(wrong)


def copy_tree(target: Path) -> Path:
    """A copy of the files that git knows or would add, and of the compiled library."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    for name in [*names, "dakd/_C.so"]:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def shares(faults: Sequence[Fault], count: int) -> list[list[str]]:
    """The tests of all faults, each once, in `count` parts; a file's tests stay together."""
    tests = sorted({test for fault in faults for test in fault.tests})
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    return [[test for test in tests if files.index(test.partition("::")[0]) % count == part] for part in range(count)]


def in_trees(act: Callable[[Any, Path], Any], tasks: Sequence[Any], trees: Sequence[Path]) -> list:
    """The results of act(task, tree) in the order of the tasks; a tree serves one task at a time."""
    free: SimpleQueue[Path] = SimpleQueue()
    for tree in trees:
        free.put(tree)

    def with_a_tree(task: Any) -> Any:
        tree = free.get()
        try:
            return act(task, tree)
        finally:
            free.put(tree)

    with ThreadPoolExecutor(len(trees)) as pool:
        return list(pool.map(with_a_tree, tasks))


def run_unchanged(tests: list[str], tree: Path) -> str:
    """The end of pytest's output where tests fail without any fault; empty where all pass."""
    if not tests:
        return ""
    done = run_tests(tests, tree, timeout_s=None)
    return "" if done.returncode == 0 else done.stdout[-3000:] + done.stderr[-1000:]


def try_fault(fault: Fault, tree: Path) -> bool:
    """Whether the tests of a fault fail in a tree that has it; the tree is restored."""
    path, start_s = tree / fault.file, time.monotonic()
    original = path.read_text()
    try:
        path.write_text(mutated_text(original, fault))
        forget_bytecode(path)
        returncode = run_tests(fault.tests, tree, TIMEOUT_S).returncode
        is_caught = returncode not in (0, *_NO_TESTS_RAN)
    except subprocess.TimeoutExpired:
        is_caught = True
    finally:
        path.write_text(original)
        forget_bytecode(path)
    word = "caught" if is_caught else "SURVIVED"
    print(f"{word}  {time.monotonic() - start_s:3.0f} s  {fault.file}: {fault.mutated}", flush=True)
    return is_caught


def mutated_text(original: str, fault: Fault) -> str:
    lines = original.splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if line.strip() == fault.line)
    lines[place] = lines[place].replace(fault.line, fault.mutated)
    return "".join(lines)


def forget_bytecode(path: Path) -> None:
    """Python compares a file with its bytecode by size and second, which two faults may share."""
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def run_tests(tests: Sequence[str], tree: Path, timeout_s: float | None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout_s)


def table(faults: Sequence[Fault], caught: Sequence[bool], seconds: float) -> str:
    areas: dict[str, list[bool]] = {}
    for fault, is_caught in zip(faults, caught):
        areas.setdefault(fault.area, []).append(is_caught)
    rows = [f"| {area} | {len(found)} | {sum(found)} |" for area, found in sorted(areas.items())]
    total = f"| **all** | **{len(caught)}** | **{sum(caught)}** |"
    head = f"{sum(caught)} of {len(caught)} faults caught in {seconds / 60:.0f} minutes on two cores:"
    return "\n".join([head, "", "| area | faults | caught |", "|---|--:|--:|", *rows, total]) + "\n"


def put_between_marks(path: Path, text: str) -> None:
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no marks {BEGIN} and {END}; put them where the table belongs")
    path.write_text(f"{before}{begin}\n{text}{end}{after}")


if __name__ == "__main__":
    sys.exit(main())

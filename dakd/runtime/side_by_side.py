"""Processes that do parts of a step at the same time on one host, such as the students of `train_saross`.

Each is a command of its own, with an equal share of the host's cores: small nets train faster by one core each than one
after the other by all cores. Standard library only.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dakd.runtime.family import dying_with_this_process
from dakd.runtime.place import CORES_SHARED_BY, without_place
from dakd.runtime.stopping import PREEMPTED, PROOF_VARIABLE, Preempted, received_request, signal_in

_POLL_S = 0.2
_GRACE_S = 2.0  # for processes that Ctrl-C reached too


def run_side_by_side(commands: Mapping[str, Sequence[str]], at_once: int) -> None:
    """Run commands by their names to their ends, the first `at_once` of them at once and each other one after a first.

    For use within `listen_for_stop`: a stop request is passed on to those that run, as is the stop of one of them, and
    none is begun after it. One that fails ends no other.
    Raises Preempted after a stop request, and RuntimeError naming those that failed.
    """
    waiting, running, failed = dict(commands), {}, {}
    sharers, reason, is_asked = min(at_once, len(commands)), None, False
    with tempfile.TemporaryDirectory(prefix="dakd-") as folder:
        try:
            while running or waiting:
                while waiting and len(running) < sharers:
                    name = next(iter(waiting))
                    # With a proof of its own to make, it leaves the file of a stop request where the others see it.
                    proof = Path(folder) / f"{len(waiting)}"
                    running[name] = _start(waiting.pop(name), sharers, proof)
                time.sleep(_POLL_S)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    code = running.pop(name).returncode
                    if code == PREEMPTED:
                        reason = reason or "one of them stopped"
                    elif code:
                        failed[name] = code
                reason = received_request() or reason
                if reason is not None and not is_asked:
                    is_asked = True
                    waiting.clear()
                    _ask_to_stop(running)
        except KeyboardInterrupt:
            _end(running)
            raise
    if failed and reason is None:
        raise RuntimeError("; ".join(f"{name} {_how(code)}" for name, code in failed.items()) + "; the same command "
                           "resumes what is unfinished, once the error above is fixed")  # fmt: skip
    if reason is not None:
        raise Preempted(f"stopped ({reason}); the same command resumes the work")


def _start(command: Sequence[str], sharers: int, proof: Path) -> subprocess.Popen:
    environment = without_place() | {CORES_SHARED_BY: str(sharers), PROOF_VARIABLE: str(proof)}
    return subprocess.Popen(command, env=environment, preexec_fn=dying_with_this_process())


def _ask_to_stop(running: Mapping[str, subprocess.Popen]) -> None:
    """A process that does not listen yet ends at once: it has done nothing."""
    for process in running.values():
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)


def _end(running: Mapping[str, subprocess.Popen]) -> None:
    """After Ctrl-C, which a terminal sends to these too: ask those that it did not reach, and wait for all."""
    until_s = time.monotonic() + _GRACE_S
    while time.monotonic() < until_s and any(process.poll() is None for process in running.values()):
        time.sleep(_POLL_S)
    _ask_to_stop(running)
    for process in running.values():
        process.wait()


def _how(code: int) -> str:
    number = signal_in(code)
    return f"ended with status {code}" if number is None else f"was ended by {number.name}"

"""Ranks meet at rank 0's address before they form a group. One that waits says for whom, and not for ever.

torch would wait in silence, for half an hour.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import timedelta

import torch.distributed as dist

from dakd.runtime.console import show
from dakd.runtime.place import check_address, describe_place, how_to_run_alone, number, seconds
from dakd.runtime.stopping import Preempted, received_request

RENDEZVOUS_S = 600.0  # nodes of a job start minutes apart; DAKD_RENDEZVOUS_S is another limit
_FIRST_REPORT_S, _NEXT_REPORT_S, _POLL_S = 3.0, 60.0, 0.1
_MOST_NAMED = 8


def meet(timeout: timedelta) -> dist.Store:
    """The store of a group of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, once all its ranks are there.

    timeout: of the store's later operations.
    Raises ValueError for contradicting variables, RuntimeError where ranks are missing after DAKD_RENDEZVOUS_S, and
    Preempted at a stop request.
    """
    check_address()
    wait = _Wait(seconds("DAKD_RENDEZVOUS_S", RENDEZVOUS_S))
    store = wait.connect()
    store.set_timeout(timeout)
    # torchrun's store outlives its ranks: those that it starts again are others.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    wait.for_all(dist.PrefixStore(f"dakd/meeting/{attempt}", store))
    return dist.PrefixStore(f"dakd/group/{attempt}", store)


class _Wait:
    """One rank's wait for the others, with its reports and its end."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.rank, self.world = number("RANK", 0), number("WORLD_SIZE", 1)
        self.host, self.port = os.environ["MASTER_ADDR"].strip(), number("MASTER_PORT", 0)
        self._start_s = time.monotonic()
        self._report_s = min(_FIRST_REPORT_S, limit_s / 2)

    def connect(self) -> dist.TCPStore:
        has_agents_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's, in place of rank 0's
        if self.rank == 0 and not has_agents_store:
            return self._serve()
        while True:
            found = self._why_closed()
            if not found:
                try:
                    return dist.TCPStore(self.host, self.port, self.world, False, timedelta(seconds=5),
                                         wait_for_workers=False)  # fmt: skip
                except RuntimeError:
                    found = "what listens there is no rank 0"
            self._pause(found)

    def for_all(self, store: dist.Store) -> None:
        """Return when all ranks have come."""
        try:
            self._agree(store)
            while (come := store.add("count", 0)) < self.world:
                # One that sees rank 0 leaves the word to it.
                self._pause(self._missing(store, come), is_silent=self.rank > 0 and store.check(["rank0"]))
        except dist.DistNetworkError as error:
            raise RuntimeError(f"rank 0 at {self.host}:{self.port} has ended; see its own message ({error})") from None

    def _serve(self) -> dist.TCPStore:
        try:
            # Its own host by this name: MASTER_ADDR may be one that only the other ranks can resolve.
            return dist.TCPStore("localhost", self.port, self.world, True, timedelta(seconds=60),
                                 wait_for_workers=False)  # fmt: skip
        except RuntimeError as error:
            if "EADDRINUSE" not in str(error) and "in use" not in str(error):
                raise
            raise RuntimeError(
                f"MASTER_PORT is {self.port}, and another process of this host listens there: another run, or a second "
                f"process with RANK=0; expected a free port; give another one (--master_port), or {how_to_run_alone()}"
            ) from None

    def _why_closed(self) -> str:
        """Why rank 0 cannot be reached; empty where it can."""
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except socket.gaierror:
            return f"there is no host {self.host}"
        except OSError:
            return "nobody listens there"
        return ""

    def _agree(self, store: dist.Store) -> None:
        """Refuse a second process with this rank, and one of a world of another size."""
        size = store.compare_set("world", "", str(self.world)).decode()
        if size != str(self.world):
            raise ValueError(
                f"WORLD_SIZE is {self.world} in rank {self.rank}, and {size} in others at {self.host}:{self.port}; "
                f"expected one number; start all with one launcher, or {how_to_run_alone()}"
            )
        mine = f"process {os.getpid()} on {socket.gethostname()}"
        owner = store.compare_set(f"rank{self.rank}", "", mine).decode()
        if owner != mine:
            raise ValueError(
                f"RANK is {self.rank}, and {owner} has that rank already; expected each rank once; start all with one "
                f"launcher, or {how_to_run_alone()}"
            )
        store.add("count", 1)

    def _missing(self, store: dist.Store, come: int) -> str:
        names = [str(rank) for rank in range(self.world) if not store.check([f"rank{rank}"])]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return f"{come} of {self.world} ranks are there; missing: rank {', '.join(names[:_MOST_NAMED])}{more}"

    def _pause(self, found: str, is_silent: bool = False) -> None:
        if reason := received_request():
            raise Preempted(f"stopped while waiting for other ranks ({reason}); the same command resumes the work")
        waited_s = time.monotonic() - self._start_s
        facts = f"rank {self.rank} of {self.world} waits at {self.host}:{self.port}: {found}"
        remedy = f"({describe_place()}); start the others, or {how_to_run_alone()}"
        if waited_s >= self.limit_s:
            limit = f"DAKD_RENDEZVOUS_S allows {self.limit_s:g} s"
            raise RuntimeError(f"{facts}; expected {self.world} ranks, and {limit} {remedy}")
        if waited_s >= self._report_s and not is_silent:
            self._report_s += _NEXT_REPORT_S
            _say(f"{facts}; gives up after {self.limit_s:g} s {remedy}")
        time.sleep(_POLL_S)


def _say(text: str) -> None:
    show(f"dakd: {text}", sys.stderr)

"""Signals that `nohup` and a shell's `&` have children ignore, taken up again for those that a test starts."""

from __future__ import annotations

import signal


def heed_signals() -> None:
    """Processes started from now on obey SIGHUP and SIGINT; this one goes on when its terminal is closed.

    Otherwise a test that ends a process by one of them would wait for ever.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # a handler is not inherited by another program
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Text for people on the standard streams: no character that a stream cannot take makes a command fail."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def show(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print a text at once. stream: None takes standard output.

    What the stream's encoding has no character for, such as the bytes of a file name that is not UTF-8, is written as
    Python would write it in a string: \\xe9, \\udce9.
    """
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, end=end, flush=True)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, end=end, flush=True)


def open_closed_streams() -> None:
    """Give the standard streams that this process was started without (`>&-`) to the null device.

    The next file that is opened would else get the free descriptor, and with it what libraries and child processes
    print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115

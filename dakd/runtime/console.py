"""Text for people on the standard streams: no character that a stream cannot take makes a command fail."""

from __future__ import annotations

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

"""Exit statuses that dakd gives, or that it reads from the processes of its steps."""

import signal

FAILED = 1
WRONG_ARGUMENTS = 2
PREEMPTED = 85  # a training stopped because it was asked to; the same command resumes it
INTERRUPTED = 128 + signal.SIGINT  # as shells report a command that Ctrl-C ended
BROKEN_PIPE = 128 + signal.SIGPIPE  # and one whose reader has left

# Ended by SIGINT or SIGTERM, as a child process and as a shell would report it.
ENDED_BY_SIGNAL = (-signal.SIGINT, -signal.SIGTERM, INTERRUPTED, 128 + signal.SIGTERM)

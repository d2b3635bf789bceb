"""`dakd verify RUN`: every file of a run against its checksum, and the command that repairs each damaged one.

It only reads, needs no GPU and no net, and may look at a run in progress: unfinished work is reported as such. What
a step believes holds its own checksum (see `runtime/sealed.py`), or is listed with one in the index of its shards or in
its folder's manifest. Pictures and texts that no manifest lists are opened, and must be whole and not empty.
"""

from dakd.verify.accept import accept
from dakd.verify.repairs import format_found
from dakd.verify.run import verify_run

__all__ = ["accept", "format_found", "verify_run"]

"""Claims of generation: workers continue with any content of the claims folder, and remove no living claim."""

from __future__ import annotations

import os
import shutil
import socket

from fuzz.mutations import mutated_bytes
from fuzz.verdict import fuzzed, judge
from hypothesis import given
from hypothesis import strategies as st

from dakd.generate.claims import Claims, clear_dead_claims, living_claims

HOST = socket.gethostname()
LIVING = f"{HOST} {os.getpid()}\n..".encode()
OWNERS = (LIVING, f"{HOST} {2**22 + 1}\n.".encode(), b"another-host 1\n", f"{HOST} {2**70}\n".encode(),
          f"{HOST} \u00b2\n".encode(), f"{HOST} 0\n".encode(), f"{HOST} -1\n".encode(), b"\xff 1\n",
          HOST.encode())  # fmt: skip
NAMES = ("000000", "000001", "7", "0x1", "000000.tmp", "1 ", "9" * 40, "\u0661", "2\n")


@fuzzed
@given(data=st.data())
def test_claims_of_any_name_and_content(tmp_path, data):
    shutil.rmtree(tmp_path / "claims", ignore_errors=True)
    claims = Claims(tmp_path, patience_s=60)
    for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
        owner = data.draw(st.sampled_from(OWNERS))
        content = data.draw(mutated_bytes(owner)) if data.draw(st.booleans()) else owner
        (claims.folder / name).write_bytes(content)
    (claims.folder / "000003").write_bytes(LIVING)

    def read() -> None:
        assert 3 in living_claims(tmp_path)
        clear_dead_claims(tmp_path)
        assert (claims.folder / "000003").read_bytes() == LIVING, "a living worker's claim was removed"
        assert not claims.take(3), "a living worker's claim was taken"
        for shard in (0, 1, 4):
            if claims.take(shard):
                claims.beat(shard)
                claims.release(shard)

    judge("claims", read, "claims")

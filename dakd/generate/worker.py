"""One worker of any number: it makes the shards that are missing until all are there, whoever made them.

There is no master, no lease and no collective. A worker starts with its share of the shards, then sweeps over all; it
leaves alone what another one says to be making, and waits for that at the end, for it may have to do it after all.
"""

from __future__ import annotations

import time

from dakd.data.indexing import ShardInfo
from dakd.data.publish import publish_shard, publish_sidecar
from dakd.generate.claims import Claims
from dakd.generate.plan import Place, Plan
from dakd.generate.progress import Progress, finished_shards
from dakd.generate.sidecar import UNSOUND, derive_sidecar, sidecar_facts
from dakd.generate.teacher import PairMaker
from dakd.runtime.runlog import say
from dakd.runtime.version import code_version

_POLL_S = 0.5


class Worker:
    """Makes the shards of a plan."""

    def __init__(self, plan: Plan, maker: PairMaker, place: Place, progress: Progress) -> None:
        self.plan, self.maker, self.place, self.progress = plan, maker, place, progress
        self._claims = Claims(plan.folder, maker.cfg.claim_patience_s)
        self._unsound: dict[int, str] = {}

    def run(self) -> None:
        """Return when every shard is there, and measured where a gate asks for it.

        Raises ValueError where a tar is there that is not sound.
        """
        gate, there = self.plan.gate, finished_shards(self.plan)  # one look at the folder: there may be thousands
        done = {shard for shard in there if gate is None or gate.is_measured(self.plan, shard)}
        waiting = [shard for shard in range(self.plan.num_shards) if shard not in done]
        own = [shard for shard in waiting if shard % self.place.count == self.place.number]
        for shard in own + waiting:
            self._visit(shard)
        while waiting := [shard for shard in waiting if not self._is_settled(shard)]:
            # Not `any`: one pass looks at every claim, so that the patience with all of them runs at once.
            if not sum(self._visit(shard) for shard in waiting):
                time.sleep(_POLL_S)
        if self._unsound:
            lines = "\n".join(f"  {what}" for what in self._unsound.values())
            raise ValueError(
                f"{len(self._unsound)} of {self.plan.num_shards} shards are not sound, all others are there; run the "
                f"same with --repair to put them into quarantine and make them again\n{lines}"
            )

    def _is_settled(self, shard: int) -> bool:
        return shard in self._unsound or self.plan.is_done(shard)

    def _visit(self, shard: int) -> bool:
        """See to a shard unless it is there or another worker is at it; whether something was done."""
        if self._is_settled(shard) or not self._claims.take(shard):
            return False
        try:
            if not self.plan.tar(shard).exists():
                self._make(shard)
            elif not self.plan.is_there(shard):
                self._adopt(shard)
            if self.plan.is_there(shard) and not self._is_settled(shard):
                self._measure(shard)
        finally:
            self._claims.release(shard)
        return True

    def _make(self, shard: int) -> None:
        indices, start_s = self.plan.indices(shard), time.monotonic()

        def before_each(count: int) -> None:
            if self.plan.tar(shard).exists():
                raise _MadeElsewhere
            self._claims.beat(shard)
            self.progress.report(count)

        def facts(info: ShardInfo) -> dict:
            rate = info.num_samples / max(1e-9, time.monotonic() - start_s)
            made = {"device": self.maker.device_name, "commit": code_version(), "images_per_s": round(rate, 4)}
            return sidecar_facts(info, indices) | made

        try:
            won = publish_shard(
                self.plan.folder,
                shard,
                self.maker.pairs(indices, before_each),
                self.maker.classes,
                codec=self.maker.cfg.codec,
                temperature=self.plan.provenance.get("temperature"),
                provenance=self.plan.provenance,
                facts=facts,
            )
        except _MadeElsewhere:
            won = False
        self.progress.finish(len(indices) if won else 0)

    def _measure(self, shard: int) -> None:
        """Measure a shard for the gate."""
        try:
            self.plan.gate.measure(self.plan, shard, lambda: self._claims.beat(shard))
        except UNSOUND as error:
            self._unsound[shard] = f"{self.plan.tar(shard)}: {error}"

    def _adopt(self, shard: int) -> None:
        """Derive the sidecar of a tar that has none, after its maker died between the two."""
        try:
            info = derive_sidecar(self.plan, shard, self.maker.classes)
        except UNSOUND as error:
            self._unsound[shard] = f"{self.plan.tar(shard)}: {error}"
            return
        if publish_sidecar(self.plan.tar(shard), info):
            say(f"generate: {info.file} had no sidecar; it is whole, and now has one")


class _MadeElsewhere(Exception):
    """Another worker has published the shard that is being made."""

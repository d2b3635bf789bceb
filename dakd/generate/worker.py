"""One of any number of workers: it makes missing shards until all are there, its own and those of others.

There is no master, no lease and no collective operation. A worker starts with its share of the shards, then sweeps over
all. It skips shards that others have claimed, and at the end waits for them: it makes those whose claims become stale.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from dakd.data.index import ShardInfo
from dakd.data.publish import publish_shard, publish_sidecar
from dakd.generate.claims import Claims
from dakd.generate.gate import Gate, is_done
from dakd.generate.plan import GenerationPlan
from dakd.generate.sidecar import DAMAGE_ERRORS, derive_sidecar, refuse_damaged, sidecar_facts
from dakd.generate.status import Progress
from dakd.generate.teacher import PairMaker
from dakd.runtime import distributed
from dakd.runtime.runlog import say
from dakd.runtime.slurm import array_task
from dakd.shipped import code_version

_POLL_S = 0.5
_WORD_S = 60.0


class Share(NamedTuple):
    """The shards that a worker makes first: those whose number leaves the remainder `index` divided by `count`."""

    index: int = 0
    count: int = 1


def share_from_environment() -> Share:
    """Ranks of `deepspeed` or torchrun within tasks of a SLURM array, or either alone, or a process started by hand."""
    task, tasks = array_task()
    ranks = distributed.world_size()
    return Share(task * ranks + distributed.rank(), tasks * ranks)


class Worker:
    """Makes the shards of a plan, and measures them where there is a gate."""

    def __init__(
        self, plan: GenerationPlan, gate: Gate | None, maker: PairMaker, share: Share, progress: Progress
    ) -> None:
        self.plan, self.gate, self.maker, self.share, self.progress = plan, gate, maker, share, progress
        self._claims = Claims(plan.folder, maker.cfg.claim_patience_s)
        self._damaged: dict[int, str] = {}
        self._next_word_s = 0.0

    def run(self) -> None:
        """Return when every shard is there, and measured where there is a gate.

        Raises ValueError where a tar is damaged, and at once where the gate's student cannot be used.
        """
        finished = self.plan.finished_shards()
        done = {shard for shard in finished if self.gate is None or self.gate.is_measured(self.plan, shard)}
        waiting = [shard for shard in range(self.plan.num_shards) if shard not in done]
        if waiting and self.gate is not None:
            # Before a pair is sampled, and not while a shard is measured, where its faults would pass for the shard's.
            self.gate.open_student()
        own = [shard for shard in waiting if shard % self.share.count == self.share.index]
        # Its own share first, so that workers start apart; then the rest, whose workers may be slow or dead.
        for shard in own + waiting:
            self._visit(shard)
        while waiting := [shard for shard in waiting if not self._is_settled(shard)]:
            # Not `any`: each pass looks at every claim, so that the patience with all of them runs at once.
            if not sum(self._visit(shard) for shard in waiting):
                self._report_wait(waiting)
                time.sleep(_POLL_S)
        refuse_damaged(self.plan, list(self._damaged.values()))

    def _report_wait(self, waiting: list[int]) -> None:
        """Say, now and then, whose shards this worker waits for."""
        now = time.monotonic()
        if now >= self._next_word_s:
            self._next_word_s = now + _WORD_S
            owner = self._claims.owner(waiting[0])
            say(
                f"generate: waits for other workers' shards ({len(waiting)}), such as {waiting[0]:06d} of {owner}; "
                f"makes each whose claim has not changed for {self._claims.patience_s:g} s (generate.claim_patience_s)"
            )

    def _is_settled(self, shard: int) -> bool:
        return shard in self._damaged or is_done(self.plan, self.gate, shard)

    def _visit(self, shard: int) -> bool:
        """Make or complete a shard unless it is done or claimed by another worker; whether there was work."""
        if self._is_settled(shard) or not self._claims.take(shard):
            return False
        try:
            if not self.plan.tar(shard).exists():
                self._make(shard)
            elif not self.plan.is_finished(shard):
                self._adopt(shard)
            # Another worker may have published the tar first, and not yet its sidecar: the next round measures it.
            if self.plan.is_finished(shard) and not self._is_settled(shard):
                self._measure(shard)
        finally:
            self._claims.release(shard)
        return True

    def _make(self, shard: int) -> None:
        indices, start_s = self.plan.indices(shard), time.monotonic()

        def before_each(count: int) -> None:
            # Another worker has published the shard: further work on it would be lost.
            if self.plan.tar(shard).exists():
                raise _MadeElsewhere
            self._claims.beat(shard)
            self.progress.report(count)

        def facts(info: ShardInfo) -> dict:
            rate = info.num_samples / max(1e-9, time.monotonic() - start_s)
            made = {"device": self.maker.device_name, "commit": code_version(), "images_per_s": round(rate, 4)}
            return sidecar_facts(info, indices) | made

        try:
            is_first = publish_shard(
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
            is_first = False
        self.progress.count(len(indices) if is_first else 0)

    def _measure(self, shard: int) -> None:
        try:
            self.gate.measure(self.plan, shard, lambda: self._claims.beat(shard))
        except DAMAGE_ERRORS as error:
            self._damaged[shard] = f"{self.plan.tar(shard)}: {error}"

    def _adopt(self, shard: int) -> None:
        """Derive the sidecar of a tar that has none, because its maker died between publishing the two."""
        try:
            info = derive_sidecar(self.plan, shard, self.maker.classes)
        except DAMAGE_ERRORS as error:
            self._damaged[shard] = f"{self.plan.tar(shard)}: {error}"
            return
        if publish_sidecar(self.plan.tar(shard), info):
            say(f"generate: {info.file} had no sidecar; it is intact, and now has one")


class _MadeElsewhere(Exception):
    """Another worker has published the shard that is being made."""

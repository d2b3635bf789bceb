"""The contact sheet of a study: the same start noise by the reference, the setting found, and the paper's sampler."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dakd.convergence.distances import Pairs
from dakd.convergence.record import SHEET, Record
from dakd.convergence.settings import Setting, reference_of
from dakd.convergence.sweep import Start, reference_pairs, sample_pairs
from dakd.data.pictures import contact_sheet, save_png
from dakd.generate.teacher import Teacher

MAX_SHOWN = 6  # pairs in a row
_WIDTH = 128  # pixels that an image should have at least


def draw_sheet(record: Record, teacher: Teacher, start: Start, found: Setting) -> None:
    """Write the sheet with rows of the reference, of `found`, and of leading DDIM with as many calls as `found`.

    The record says which rows a sheet has, so that none is drawn twice.
    """
    path, steps = record.path.with_name(SHEET), record.made_with["reference_steps"]
    shown = list(dict.fromkeys([found, reference_of(found.num_calls)]))
    titles = [f"reference: {reference_of(steps)}", *map(str, shown)]
    if path.is_file() and record.content.get("sheet") == titles:
        return
    few = start._replace(num=min(start.num, MAX_SHOWN))
    reference, _ = reference_pairs(record, teacher, start)
    rows = [_first(reference, few.num), *(sample_pairs(teacher, one, few) for one in shown)]
    save_png(_sheet(rows, teacher, titles), path)
    record.write(sheet=titles)


def _sheet(rows: Sequence[Pairs], teacher: Teacher, titles: Sequence[str]) -> Image.Image:
    pairs = [pair for row in rows for pair in row.samples()]
    scale = max(1, _WIDTH // rows[0].image.shape[2])
    return contact_sheet(pairs, teacher.classes, len(rows[0]), scale, titles)


def _first(pairs: Pairs, count: int) -> Pairs:
    return Pairs(pairs.image[:count], pairs.logits[:count])

"""Results that outlive the store of a table: of each finished job that a table shows, a zip with its scores.

A zip holds the record, the scores and the counts by image, and neither weights nor images: some kilobytes. Whoever has
the zips makes the table, its contrasts and its curve without a training, and goes on where another host stopped.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from dakd.ablate.plan import Job, TablePlan
from dakd.ablate.results import earlier_jobs, result_file, seconds_of_chain
from dakd.ablate.run import RECORD, SECONDS, JobStore
from dakd.runtime.files import replacing
from dakd.runtime.runlog import say
from dakd.runtime.sealed import parse_sealed, seal

_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # equal results make equal bytes


def take_results(plan: TablePlan, store: JobStore, folder: Path) -> int:
    """Unpack the results that the store lacks into it; their number.

    Raises ValueError for a zip that is damaged or holds another job.
    """
    count, shown = 0, _shown_jobs(plan, store)
    if (there := {path.stem for path in folder.glob("*.zip")}) and not there & {job.name for job, _ in shown}:
        roots = dict.fromkeys(str(job.config.prepare.root) for job, _ in shown)
        say(
            f"ablate: none of the {len(there)} results in {folder} is of a job of this table: they were made with "
            f"other settings, or with another prepare.root than {' and '.join(roots)}; set these back, or the jobs are "
            "done"
        )
    for job, files in shown:
        path = folder / f"{job.name}.zip"
        if store.is_done(job) or not path.is_file():
            continue
        content = _read(path, [*files, SECONDS, RECORD])
        record = parse_sealed(content[RECORD], path)
        if record.get("job") != job.name:
            raise ValueError(f"{path} is the record of {record.get('job')}; expected that of {job.name}; remove it")
        for name, data in content.items():  # the record last: it says that the others are there
            place = files.get(name, store.folder_of(job) / name)
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as aside:
                aside.write_bytes(data)
        count += 1
    if count:
        say(f"ablate: {count} results were taken from {folder}")
    return count


def keep_results(plan: TablePlan, store: JobStore, folder: Path) -> int:
    """Pack the results of finished jobs that the folder lacks; their number. Scores of an earlier training stay."""
    count, earlier = 0, set(earlier_jobs(plan, store))
    for job, files in _shown_jobs(plan, store):
        path = folder / f"{job.name}.zip"
        if not store.is_done(job) or path.is_file() or str(store.folder_of(job)) in earlier:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            content = {name: place.read_bytes() for name, place in files.items()}
            content[RECORD] = (store.folder_of(job) / RECORD).read_bytes()
            content[SECONDS] = seal(json.dumps(seconds_of_chain(job, store), sort_keys=True)).encode()
            for name, data in content.items():
                entry = zipfile.ZipInfo(name, _FIXED_TIME)
                entry.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(entry, data)
        count += 1
    return count


def _shown_jobs(plan: TablePlan, store: JobStore) -> list[tuple[Job, dict[str, Path]]]:
    """The jobs whose results the table shows, each once, and the files that it reads, by their names in a zip.

    A zip has one layout, whatever folders of scores a store has for its splits.
    """
    found = {}
    for cell in plan.cells:
        for source, job in cell.jobs.items():
            path = result_file(source, cell, store)
            files = [path, path.with_suffix(".images.npz")] if source == "student" else [path]
            within = [one.relative_to(store.folder_of(job)).parts for one in files]
            names = ["/".join(dict.fromkeys((parts[0], parts[-1]))) for parts in within]
            found[job.name] = (job, dict(zip(names, files)))
    return list(found.values())


def _read(path: Path, names: list[str]) -> dict[str, bytes]:
    """The members of these names, in this order; any others are left where they are."""
    try:
        with zipfile.ZipFile(path) as file:
            return {name: file.read(name) for name in names}
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the job is done again") from None

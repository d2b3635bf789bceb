"""`dakd check`: the whole experiment looked at before its first costly step, with all findings at once.

Every finding comes from the function by which a step itself refuses, called on what is known beforehand: the settings,
some files of the dataset, the nets on torch's meta device, weights files, and what the run folder already holds.
Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from dakd.check import data, host, results, trainings
from dakd.check.capacity import on_disk, on_memory
from dakd.check.experiment import Experiment
from dakd.check.findings import Finding, Found, until_error
from dakd.config import Config


def check(config: Config, processes: int = 1) -> list[Finding]:
    """All findings on an experiment; processes: ranks of each training."""
    return list(_findings(Experiment(config, processes)))


def is_refused(findings: list[Finding]) -> bool:
    return any(finding.level == "refused" for finding in findings)


def format_findings(findings: list[Finding]) -> str:
    """One line a finding; further lines of a message are indented."""
    width = max(len(finding.topic) for finding in findings)
    indent = "\n" + " " * (width + 11)
    return "\n".join(
        f"{finding.level:<9}{finding.topic:<{width}}  {finding.text.replace(chr(10), indent)}" for finding in findings
    )


_CHECKS: dict[str, Callable[[Experiment], Found]] = {
    "run folder": host.run_folder,
    "launcher": host.launcher,
    "packages": host.packages,
    "backend": host.backends,
    "data": data.data,
    "teacher": trainings.teacher,
    "extra images": trainings.extra_images,
    "generate": results.generate,
    "refine": results.refine,
    "pseudo label": results.pseudo_label,
    "student": trainings.student,
    "training sets": trainings.training_sets,
    "held out": trainings.held_out,
    "resume": trainings.resume,
    "evaluate": results.evaluate,
    "predict": results.predict,
    "memory": on_memory,
    "disk": on_disk,
}


def _findings(experiment: Experiment) -> Iterator[Finding]:
    refused: set[str] = set()  # several steps may refuse one thing; it is reported once
    for topic, run in _CHECKS.items():
        for level, text in until_error(partial(run, experiment)):
            if level != "refused" or text not in refused:
                yield Finding(topic, level, text)
            if level == "refused":
                refused.add(text)

"""Every error that dakd raises names what was found and what to do: each `raise` is judged by its text.

A message needs a value (of the file, the key or what was found) and a remedy: what was expected, or what to do. One
that has them from elsewhere stands in ELSEWHERE with the place that adds them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_DO = (
    "add|allow|bring|build|call|cast|change|check|choose|compare|complete|copy|cut|download|expected|export|fetch|"
    "fill|finish|fix|free|generate|give|install|leave|let|lower|make|mend|move|name|override|pip|"
    "predict|prepare|put|quote|raise|read|remove|rename|replace|run|save|scale|see|set|"
    "shorten|split|state|take|train|unpack|upload|use|widen|write"
)
# A verb that begins a clause, or the choices that there are; or a clause that comes from elsewhere: `...; {remedy}`.
_REMEDY = re.compile(
    rf"(?:[;:,(] |\. |`|\b(?:and|or|then|to) )(?:{_DO})\b|\bneeds? |is it another file"
    r"|\bmust be multiples|the same command resumes"
    r"|\b(?:known|it has|there are|near names|the names given are):? (?:\{}|width)|; (?:\{}|did you mean \{}\?)$",
    re.IGNORECASE,
)

WHOLE = "a validator of the index or sidecar: `_parse` adds the file, the value and 'write the set again'"
RECORD = "of a record: who reads it adds the file and the record's key, and says to write it again, or to skip it"
OWN = "a mistake that only a caller in Python can make"
NONE = "the value is that there is none"
SHARD = "of a damaged shard: who reads it says to run generate with --repair"
CHECKPOINT = "an older checkpoint is taken, or `load_latest` says what to do"
PARTS = "it passes on messages that have both"
REFUSAL = "a function of that name makes the text: what was found, what was expected, and what to do"
VERIFY = "`dakd verify` prints the file, this, and the command that repairs it"
SCENE = "`BadScenes` adds the scene's path"
ELSEWHERE = {
    ("ablate/command.py", "--reference {}: {}"): PARTS,
    ("ablate/command.py", "{}"): PARTS,
    ("ablate/command.py", "--base {}: {}"): PARTS,
    ("ablate/figures.py", "a figure has no rows"): OWN,
    ("ablate/spec.py", "evaluate.folder and evaluate.student leave"): "the settings stand in the text",
    ("ablate/spec.py", "{} is not valid YAML: {}"): PARTS,
    ("ablate/spec.py", "{}"): PARTS,
    ("cli/command.py", "{}"): PARTS,
    ("cli/steps.py", "{}"): PARTS,
    ("config/base.py", "expected {}"): "`plain_fault` adds the key and the value",
    ("config/base.py", "bool_for_number"): "`plain_fault` says the key, the expected type and the value instead",
    ("config/base.py", "empty_text"): "`plain_fault` adds the key and the value",
    ("config/base.py", "no_text"): "`plain_fault` adds the key and the value",
    ("config/prepare.py", "dataset 'sos' has no sensor"): "the value is that there is none",
    ("config/prepare.py", "dataset 'folder' has no classes"): "the value is that there is none",
    ("config/overrides.py", "override {}: the value is not valid YAML"): PARTS,
    ("config/reading.py", "{}"): PARTS,
    ("config/validation.py", "{}:\n{}"): PARTS,
    ("config/yaml_text.py", "{} is not valid YAML: {}"): PARTS,
    ("config/yaml_text.py", "None None"): "`yaml_problem` adds the remedy",
    ("data/datasets.py", "the student's dataset has neither"): OWN,
    ("data/datasets.py", "the teacher's dataset has no sources"): OWN,
    ("data/foreign_records.py", "{} {}"): RECORD,
    ("data/index.py", "the field {} is unknown"): WHOLE,
    ("data/index.py", "expected"): WHOLE,
    ("data/index.py", "counts {} samples"): WHOLE,
    ("data/index.py", "says {} {} of"): WHOLE,
    ("data/order.py", "place {} of an epoch"): OWN,
    ("data/pictures.py", "a picture needs at least one image"): OWN,
    ("data/pipes.py", "the streams {} hold no good record"): PARTS,
    ("data/readers/base.py", "{} reads no labels"): OWN,
    ("data/readers/label_values.py", "{} {}"): "`_no_meaning` makes the text, with the values and what to do",
    ("data/readers/sos.py", "{} {}"): "`JPEG_IDS` is the text, with what was expected and what to do",
    ("data/readers/picture_structure.py", "it has no page"): RECORD,
    ("data/readers/read_picture.py", "{} cannot be read as a picture"): "BadDataset lists such files with the remedy",
    ("data/sample.py", "{}"): PARTS,
    ("data/shards.py", "there are no samples to write"): OWN,
    ("data/shards.py", "sample {} of a set of {}"): OWN,
    ("data/shards.py", "its checksum differs"): RECORD,
    ("data/shards.py", "{}: record {}: {}"): PARTS,
    ("data/shards.py", "{}"): PARTS,
    ("data/soft_labels.py", "soft label holds NaN"): RECORD,
    ("data/soft_labels.py", "codec logprob8"): "the value is that there is none",
    ("data/sources.py", "the last attempt returns or raises"): OWN,
    ("data/sources.py", "{} does not exist"): "who opens it adds the remedy",
    ("data/sources.py", "{} cannot be indexed: {}"): PARTS,
    ("data/tars.py", "a member is stored as a sparse file"): RECORD,
    ("data/tars.py", "{}: {}"): PARTS,
    ("data/tars.py", "its headers lead beyond"): RECORD,
    ("generate/sidecar.py", "{} {}"): SHARD,
    ("generate/sidecar.py", "{} holds a record"): SHARD,
    ("metrics/bootstrap.py", "the two students"): OWN,
    ("metrics/calibration.py", "no pixel was counted"): NONE,
    ("metrics/scores.py", "no pixel was counted"): NONE,
    ("metrics/tables.py", "no scores to show"): OWN,
    ("diffusion/precondition.py", "the fine detail of no images"): OWN,
    ("report/charts.py", "a chart needs"): OWN,
    ("models/mamba_vision.py", "this MambaVision has no classifier"): OWN,
    ("models/pretrained.py", "{} {}"): PARTS,
    ("models/rivals/sam_oil/net.py", "SamOil finds objects"): OWN,
    ("models/rivals/sam_oil/net.py", "student sam_oil has no SAM"): NONE,
    ("models/student.py", "{} has no loss of its own"): OWN,
    ("train/checkpoint.py", "{} has another checksum"): CHECKPOINT,
    ("train/checkpoint.py", "{} cannot be read"): CHECKPOINT,
    ("train/checkpoint.py", "{} could not be written"): "the system's error names the remedy",
    ("train/checkpoint.py", "{}"): PARTS,
    ("train/engine.py", "{}"): PARTS,
    ("train/jointnet.py", "train_jointnet.generator is ddpm"): "the value stands in the text",
    ("train/student_checks.py", "batch_norm is sync"): "the value stands in the text",
    ("train/student_losses.py", "kd_form standardized"): "the value stands in the text",
    ("train/zero.py", "{}"): PARTS,
    ("predict/images.py", "{} {}"): PARTS,
    ("predict/images.py", "{}"): PARTS,
    ("pipeline.py", "{} finding(s)"): PARTS,
    ("runtime/files.py", "{} "): REFUSAL,
    ("runtime/lock.py", "{} {}"): REFUSAL,
    ("runtime/named.py", "{}"): PARTS,
    ("runtime/place.py", "WORLD_SIZE is {}, and RANK is not set"): REFUSAL,
    ("runtime/place.py", "LOCAL_RANK is {}, and RANK is not set"): REFUSAL,
    ("runtime/place.py", "RANK is {}, and WORLD_SIZE is not set"): REFUSAL,
    ("runtime/place.py", "MASTER_PORT is {}"): REFUSAL,
    ("runtime/place.py", "{}"): REFUSAL,
    ("runtime/slurm.py", "{} "): REFUSAL,
    ("scene/bands.py", "its checksum differs"): "the file and the remedy are added where it is caught",
    ("scene/detect.py", "{}: {}"): PARTS,
    ("scene/detect.py", "{} {}"): PARTS,
    ("scene/georeference.py", "a raster without a CRS"): NONE,
    ("scene/georeference.py", "its georeference leads outside"): SCENE,
    ("scene/georeference.py", "they lie on a line"): "the number of points and the remedy are added where it is caught",
    ("scene/grey_scene.py", "none of its pixels is valid"): SCENE,
    ("scene/radiometry.py", "its numbers are amplitudes"): SCENE,
    ("scene/radiometry.py", "the student's file has no greys"): NONE,
    ("scene/rasters_in.py", "it is a product folder or a ZIP"): SCENE,
    ("scene/rasters_in.py", "it stores numbers of colours"): SCENE,
    ("scene/rasters_in.py", "it has no band but"): SCENE,
    ("scene/rasters_in.py", "it has a transform but no CRS"): SCENE,
    ("scene/rasters_in.py", "its place is given by rational"): SCENE,
    ("scene/rasters_in.py", "its red, green and blue differ"): SCENE,
    ("scene/rasters_in.py", "{} {}"): PARTS,
    ("scene/rasters_out.py", "{} {} {}"): "`cli/errors.py` adds the remedy to an error of the system",
    ("scene/scene_job.py", "it has no place on Earth"): SCENE,
    ("verify/one_file.py", "{} does not exist"): VERIFY,
    ("verify/one_file.py", "holds no settings"): VERIFY,
    ("verify/one_file.py", "is empty"): VERIFY,
    ("verify/one_file.py", "the checksum of {} differs"): VERIFY,
    ("verify/one_file.py", "line {} is not JSON"): VERIFY,
}


def raises() -> list[tuple[str, int, str]]:
    """(file, line, text of the error) of every `raise` with an error of its own; `{}` stands for a value."""
    found = []
    for path in sorted((ROOT / "dakd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.append((str(path.relative_to(ROOT / "dakd")), node.lineno, text_of(node.exc)))
    return found


def text_of(call: ast.Call) -> str:
    return " ".join(_text(argument) for argument in [*call.args, *(one.value for one in call.keywords)])


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body)} {_text(node.orelse)}"
    return "{}"


def fault_of(text: str) -> str:
    faults = []
    if "{}" not in text:
        faults.append("names no value")
    if not _REMEDY.search(text):
        faults.append("has no remedy")
    return " and ".join(faults)


def reason_of(file: str, text: str) -> str | None:
    return next((why for (where, start), why in ELSEWHERE.items() if file == where and text.startswith(start)), None)


def test_every_message_names_a_value_and_a_remedy():
    sites = raises()
    assert len(sites) > 400, "the raises of dakd were not found"
    bad = [f"dakd/{file}:{line} {fault}: {text!r}" for file, line, text in sites
           if (fault := fault_of(text)) and reason_of(file, text) is None]  # fmt: skip
    assert bad == [], "\n".join(["", *bad])


def test_no_exception_from_the_rule_is_left_over():
    texts = [(file, text) for file, _, text in raises()]
    idle = [key for key in ELSEWHERE if not any(file == key[0] and text.startswith(key[1]) for file, text in texts)]
    assert idle == []


@pytest.mark.parametrize("text, fault", [
    ("{} has {} bytes; expected at most {}", ""), ("{} is damaged; write it again", ""),
    ("it is damaged", "names no value and has no remedy"), ("{} is damaged", "has no remedy"),
    ("write it again", "names no value and has no remedy"), ("no image; give one", "names no value"),
])  # fmt: skip
def test_the_judge_sees_what_is_absent(text, fault):
    assert fault_of(text) == fault

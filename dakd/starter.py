"""`dakd init`: writes the YAML of an experiment on your own data, with sizes and numbers that fit the data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import yaml

from dakd.config import PrepareConfig, build_config, parse_yaml, validated
from dakd.data.readers import BadDataset, BadFile, Dataset, SampleFiles, open_dataset
from dakd.data.readers.base import UNLABELLED
from dakd.data.readers.label_meaning import refuse_contradiction
from dakd.data.readers.read_picture import picture_size
from dakd.data.readers.sos import SosDataset
from dakd.data.sample import IGNORE_INDEX, OSD_CLASSES
from dakd.names import FILE_PART, is_file_part, written_path
from dakd.runtime.files import write_text

# For classes without a given colour: the colour of the OSD class of that name, then clearly different colours.
_KNOWN_COLOURS = dict(zip(OSD_CLASSES.names, OSD_CLASSES.colours))
_MORE_COLOURS = ((255, 200, 0), (0, 90, 255), (255, 0, 200), (150, 255, 80), (120, 80, 200), (255, 140, 0))
_STRIDE = 32  # pixels: crops are multiples of the encoders' coarsest stride
_NUM_LABELS_READ = 8


@dataclass(frozen=True)
class _Facts:
    """num_train, num_unlabelled: training images with and without labels.  has_test: of a test split.

    shortest_side: in pixels, of the smallest training image.
    """

    num_train: int
    num_unlabelled: int
    shortest_side: int
    has_test: bool

    @property
    def trains_itself(self) -> bool:
        """Whether most images have no labels: then self-training, which needs no teacher, is the cheaper choice.

        With 25 and 50 of 839 labels no difference to pairs of a teacher was shown, benchmarks/evidence/labels_64.md.
        """
        return self.num_unlabelled > self.num_train


def write_starter(
    name: str,
    dataset: str,
    root: str | None,
    *,
    classes: str | None = None,
    sensor: str | None = None,
    polarity: str | None = None,
    mask_threshold: int | None = None,
    mask_values: str = "auto",
    on_missing_mask: str = "stop",
    preset: str = "small",
    out: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the YAML of an experiment and return its path.

    dataset: folder, osd, sos or simulated.  root: the folder of the data.  classes: `NAME[:RRGGBB],...` in the order of
    the ids, for a folder.  sensor: palsar or sentinel, for sos.  polarity, mask_threshold: of the masks of sos, see the
    settings of prepare; None takes the defaults.  mask_values, on_missing_mask: see
    prepare.
    preset: small or paper.  out: None takes NAME.yaml.
    The data are opened and some labels read, so that mistakes are found now and not in a later step.
    Raises ValueError (found, expected, remedy) for data or options that make no experiment, and if the file exists.
    """
    _check_name(name)
    path = written_path(out or f"{name}.yaml")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of the YAML to write")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; give another name or --out FILE, or --overwrite to replace it")
    prepare: dict = {"dataset": dataset}
    if dataset != "simulated":
        if not root:
            raise ValueError(f"dataset {dataset} needs a folder; give --root DIR")
        prepare["root"] = str(Path(root).expanduser().resolve())
    elif root is not None:
        raise ValueError(f"dataset simulated reads no folder; remove --root {root}, or choose another dataset")
    if dataset == "folder":
        prepare["classes"] = parse_classes(classes)
    elif classes is not None:
        raise ValueError(f"dataset {dataset} has its own class table; remove --classes, or choose folder")
    if sensor is not None:
        prepare["sensor"] = sensor
    for key, value in (("polarity", polarity), ("mask_threshold", mask_threshold)):
        if value is not None and dataset != "sos":
            option = f"--{key.replace('_', '-')}"
            raise ValueError(f"{option} is {value}, and dataset {dataset} has no such setting; remove {option}")
        prepare |= {} if value is None else {key: value}
    if mask_values != "auto":
        prepare["mask_values"] = mask_values
    if on_missing_mask != "stop":
        prepare["on_missing_mask"] = on_missing_mask
    facts = _survey(validated(PrepareConfig, prepare, "options of the data"))
    text = _text(name, path, prepare, facts, preset)
    _check_read_back(text, name, prepare)
    write_text(path, text)
    return path


def _check_name(name: str) -> None:
    if not is_file_part(name) or "$" in name:
        raise ValueError(f"name is {name!r}; expected a folder's name: no dollar, {FILE_PART}")


def _check_read_back(text: str, name: str, prepare: dict) -> None:
    """ValueError if the YAML, read again, has other values than those given; then nothing is written."""
    config = build_config(parse_yaml(text).tree, f"the YAML of {name}")
    if config.name != name or config.prepare.root != prepare.get("root") or "${" in (config.prepare.root or ""):
        raise ValueError(f"{prepare.get('root')!r} cannot be written in a YAML; move the data to a plainer path")
    if config.prepare.classes is not None and list(config.prepare.classes.items()) != list(prepare["classes"].items()):
        names = ", ".join(prepare["classes"])
        raise ValueError(f"the classes {names} cannot be written in a YAML; give plainer names")


def parse_classes(text: str | None) -> dict[str, tuple[int, int, int]]:
    """`sea,oil:00ffff` as colours by name, in the order of the ids; ValueError for fewer than two or a bad colour."""
    entries = [entry.strip() for entry in (text or "").split(",") if entry.strip()]
    if len(entries) < 2:
        raise ValueError(f"--classes is {text or 'missing'}; expected at least two names by id, such as sea,oil")
    if len(entries) > IGNORE_INDEX:
        raise ValueError(f"--classes has {len(entries)} names; expected at most {IGNORE_INDEX}")
    table: dict[str, tuple[int, int, int]] = {}
    given = {name.strip(): colour.strip() for name, _, colour in (entry.partition(":") for entry in entries)}
    if any(not name or "$" in name for name in given):
        raise ValueError(f"--classes {text} has an empty name, or one with a dollar sign; give each class a plain name")
    if len(given) < len(entries):
        raise ValueError(f"--classes {text} names a class twice; give each id its own name")
    for name, colour in given.items():
        if colour and not re.fullmatch(r"#?[0-9A-Fa-f]{6}", colour):
            raise ValueError(f"the colour of {name!r} is {colour!r}; expected six hexadecimal digits, such as 00ffff")
    taken = {_rgb(colour) for colour in given.values() if colour}
    for name, colour in given.items():
        table[name] = _rgb(colour) if colour else _free_colour(name, taken)
        taken.add(table[name])
    return table


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _free_colour(name: str, taken: set[tuple[int, int, int]]) -> tuple[int, int, int]:
    wanted = [_KNOWN_COLOURS[name]] if name in _KNOWN_COLOURS else []
    spectrum = ((step * 37 % 256, step * 91 % 256, step * 151 % 256) for step in range(1, 1000))
    candidates: Iterable = (*wanted, *_MORE_COLOURS, *_KNOWN_COLOURS.values(), *spectrum)
    return next(colour for colour in candidates if colour not in taken)


def _survey(cfg: PrepareConfig) -> _Facts:
    if cfg.dataset == "simulated":
        return _Facts(cfg.simulation.num_train, 0, min(cfg.simulation.size), True)
    data = open_dataset(cfg)
    if cfg.on_missing_mask == "image_only":
        data.set_aside_unmasked()
    if problems := data.problems():
        what = f"{cfg.root} is not a complete {cfg.dataset} dataset:"
        if data.has_unmasked:
            raise BadDataset(
                what,
                problems,
                "repair or remove these files, or give dakd init --on-missing-mask image_only: training images without "
                "a mask then serve self-training and stage 1 of the teacher",
            )
        raise BadDataset(what, problems, "repair or remove these files")
    if "train" not in data.splits:
        raise ValueError(f"{cfg.root} has the splits {', '.join(data.splits)}; expected train/ with images/ and masks/")
    entries = data.entries("train")
    if all(entry.label_path is None for entry in entries):
        raise ValueError(
            f"the {len(entries)} images in {cfg.root} have no masks, and students learn from masks; put masks/ next "
            f"to images/, each mask with the stem of its image (not read: {', '.join(data.unread()) or 'nothing'})"
        )
    _read_some_labels(data, cfg.classes)
    unlabelled = data.entries(UNLABELLED)
    shortest = min(map(_shortest_side, [*entries, *unlabelled]))
    return _Facts(len(entries), len(unlabelled), shortest, "test" in data.splits)


def _read_some_labels(data: Dataset, classes: Iterable[str] | None) -> None:
    """ValueError if a label of any split cannot be read with these classes, or suggests another meaning of them.

    classes: the names that were given, None where the dataset has its own.
    """
    try:
        meanings = {split: meaning for split in data.splits if (meaning := data.label_meaning(split)) is not None}
        refuse_contradiction(meanings)
        for entry in (entry for split in data.splits for entry in islice(data.entries(split), _NUM_LABELS_READ)):
            data.read(entry)
    except BadFile as error:
        if "prepare." not in error.reason:  # no setting helps
            raise ValueError(f"{error}; fix or remove it") from error
        raise ValueError(f"{error}; or give dakd init {_options(data, classes, 'NAME:RRGGBB,...')}") from error
    except ValueError as error:
        names = list(classes or ())
        table = f"{names[0]}:000000,{names[1]}:ffffff" if len(names) == 2 else "NAME:RRGGBB,..."
        raise ValueError(f"{error}; give dakd init {_options(data, classes, table)}") from error
    try:
        data.check()
    except ValueError as error:
        raise ValueError(f"{error}; give dakd init --polarity") from error


def _options(data: Dataset, classes: Iterable[str] | None, table: str) -> str:
    """The options for settings that messages on masks name: there is no YAML yet.  table: what to write for classes."""
    if isinstance(data, SosDataset):
        return "--mask-threshold or --mask-values ids"
    values = "--mask-values ids, colours, palette or binary"
    return values if classes is None else f"--classes {shlex.quote(table)}, the colours that masks show, or {values}"


def _shortest_side(entry: SampleFiles) -> int:
    return min(picture_size(entry.image_path))


def _text(name: str, path: Path, prepare: dict, facts: _Facts, preset: str) -> str:
    limit = {"small": 128, "paper": 512}[preset]
    student_crop = min(limit, facts.shortest_side // _STRIDE * _STRIDE)
    teacher_crop = min(student_crop, 256)
    if not student_crop:
        raise ValueError(
            f"the shortest side of the images is {facts.shortest_side} pixels; expected at least {_STRIDE}: remove or "
            "enlarge these images"
        )
    blocks = [
        _head(name, path, preset),
        _prepare_block(prepare, facts),
        "balance: {b: auto}  # the balancing factor, computed from the training images\n",
        (_small if preset == "small" else _paper)(teacher_crop, student_crop, facts),
        "evaluate: {batch_size: 8}\n\npredict: {num_images: 6}\n",
    ]
    return "\n".join(blocks)


def _head(name: str, path: Path, preset: str) -> str:
    file = shlex.quote(str(path).replace("\n", " "))
    return (
        f"# An experiment on your own data, preset {preset}. Check the numbers, then run all steps:\n"
        f"#     dakd pipeline --config {file}\n"
        "# The meaning of every setting:   dakd config explain train_jointnet\n"
        f"# All settings with the defaults:  dakd config show {file}\n"
        f"name: {_quoted(name)}  # the run folder is runs/{name}\n"
        "seed: 0\n"
    )


def _prepare_block(prepare: dict, facts: _Facts) -> str:
    lines = ["prepare:", f"  dataset: {prepare['dataset']}"]
    if "root" in prepare:
        lines.append(f"  root: {_quoted(prepare['root'])}  # {_number_of_images(facts)}")
    lines += [f"  {key}: {prepare[key]}" for key in ("sensor", "polarity", "mask_threshold") if key in prepare]
    if "classes" in prepare:
        lines.append("  classes:  # ids in this order; masks hold ids (255: unknown) or these colours")
        lines += [f"    {_quoted(name)}: {list(colour)}" for name, colour in prepare["classes"].items()]
    if "mask_values" in prepare:
        lines.append(f"  mask_values: {prepare['mask_values']}")
    if "on_missing_mask" in prepare:
        lines.append("  on_missing_mask: image_only  # training images without a mask: for pseudo labels, and stage 1")
    if not facts.has_test:
        lines.append("  # There is no test split; evaluate needs labelled images in test/images and test/masks.")
    lines.append("  # resize: [256, 256]  # resize every image to (height, width)")
    return "\n".join(lines) + "\n"


def _number_of_images(facts: _Facts) -> str:
    if not facts.num_unlabelled:
        return f"{facts.num_train} training images"
    return f"{facts.num_train} training images with labels, {facts.num_unlabelled} without"


def _training_sets(facts: _Facts) -> str:
    """The first lines of train_saross."""
    if facts.trains_itself:
        return """\
train_saross:  # two students: on the labelled images, and on these and all others as the first one labels them
  training_sets: [real, real+pseudo]
  synthetic_share: 0.5  # of images that the first one labelled
"""
    return """\
train_saross:  # two students: on real images, and on real and synthetic ones
  training_sets: [real, real+synthetic]
"""


def _when_made(facts: _Facts) -> str:
    """What the comment on the teacher adds where the pipeline makes none."""
    return "; made where training_sets has real+synthetic" if facts.trains_itself else ""


def _small(teacher_crop: int, student_crop: int, facts: _Facts) -> str:
    at_once = 1 if facts.trains_itself else 2  # the second student waits for labels of the first
    return f"""\
train_jointnet:  # the teacher{_when_made(facts)}; longer training gives better pairs
  unet: {{channels: [16, 32, 64, 96], blocks_per_level: 1, attention_levels: [3], norm_groups: 8}}
  sigma_data: auto  # a short training then reproduces the speckle
  image_loss: output  # and the greys
  crop: [{teacher_crop}, {teacher_crop}]
  flip: true
  global_batch: 8
  micro_batch: 8
  optimizer: {{warmup_steps: 50, ema_decay: 0.998}}
  engine: {{log_every: 50, checkpoint_every: 500, sample_every: 500, sample_steps: 20, wandb: "off"}}
  stage1: {{steps: 1500, lr: 1.0e-3}}  # images alone
  stage2: {{steps: 2400, lr: 1.0e-3}}  # labels
  stage3: {{steps: 1200, lr: 3.0e-4}}  # both

generate:  # 20 steps of this solver give nearly the pairs of the paper's 200
  num_samples: {facts.num_train + facts.num_unlabelled}
  size: [{teacher_crop}, {teacher_crop}]
  solver: dpmpp_2m
  sampling_steps: 20

{_training_sets(facts)}\
  students_at_once: {at_once}
  student:
    encoder: mamba_vision
    encoder_options:
      {{dim: 32, in_dim: 16, depths: [1, 1, 2, 2], num_heads: [1, 2, 4, 8], window_size: [8, 8, 4, 2], drop_path: 0.0}}
    decoder_channels: [64, 64, 32, 16]
    caft_heads: [1, 1, 1]
  crop: [{student_crop}, {student_crop}]
  mosaic: false
  global_batch: 8
  micro_batch: 8
  steps: 1500
  optimizer: {{lr: 2.0e-3, warmup_steps: 50, ema_decay: 0.995, lr_decay: cosine}}
  engine: {{num_workers: 1, log_every: 50, checkpoint_every: 500, wandb: "off"}}
"""


def _paper(teacher_crop: int, student_crop: int, facts: _Facts) -> str:
    return f"""\
train_jointnet:  # the teacher: 231.5 M parameters, days on two GPUs{_when_made(facts)}
  crop: [{teacher_crop}, {teacher_crop}]
  global_batch: 32
  micro_batch: 16  # per GPU
  stage1: {{steps: 50000}}  # images alone
  stage2: {{steps: 250000}}  # labels
  stage3: {{steps: 100000, lr: 1.0e-5}}  # both

generate:
  num_samples: {facts.num_train + facts.num_unlabelled}
  size: [{teacher_crop}, {teacher_crop}]
  sampling_steps: 200

{_training_sets(facts)}\
  student: {{encoder: mamba_vision_b}}  # add pretrained: PATH/mambavision_base_1k.pth.tar (non-commercial weights)
  crop: [{student_crop}, {student_crop}]
  mosaic: {str(student_crop == 2 * teacher_crop).lower()}  # tiles four synthetic images to one of twice the size
  global_batch: 16
  micro_batch: 16
  epochs: 200
"""


def _quoted(text: str) -> str:
    """The text as a YAML scalar, quoted if YAML would read it as something else."""
    is_plain = re.fullmatch(r"[A-Za-z_/][\w/.-]*", text) and isinstance(yaml.safe_load(text), str)
    return text if is_plain else yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10_000).strip()

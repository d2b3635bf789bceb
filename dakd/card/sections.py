"""The sections of a card but the scores, each as the Markdown under its heading, and the means to write it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from dakd.card.subject import Subject, file_name, trained_on, without_places
from dakd.config import GenerateConfig
from dakd.metrics.tables import format_cell
from dakd.runtime.runlog import METRICS, read_records
from dakd.shipped import code_version

# Source of the images and the terms for passing them on, by `prepare.dataset`.
DATASETS = {
    "simulated": "images of the simulator that comes with dakd, not of a satellite; no licence of others applies",
    "osd": "Oil Spill Detection Dataset (Krestenitis et al. 2019), Sentinel-1; it may not be redistributed",
    "sos": "Deep-SAR Oil Spill dataset (Zhu et al. 2022); it may not be redistributed",
    "folder": "images of a private folder; ask the author of these weights for their licence",
}
_NOT_RECORDED = "not recorded"
# Parts of a section that do not concern the weights.
_LEFT_OUT = ("engine", "audit", "gate")


def heading(model: Subject) -> str:
    """Title, and a paragraph on the net."""
    if model.is_student:
        title = "oil spill segmentation of SAR images"
        net = (
            f"{model.title} with the encoder {plain(model.student.encoder)}, a net that gives every pixel of a radar "
            f"(SAR) image one of {model.classes.num_classes} classes; {model.num_parameters:,} parameters."
        )
    else:
        title = "SAR images with labels"
        net = (
            f"{model.title}, a diffusion model that generates radar (SAR) images together with a soft label of "
            f"{model.classes.num_classes} classes for every pixel; {model.num_parameters:,} parameters. Segmentation "
            "nets learn from its pairs by knowledge distillation."
        )
    method = "[DAKD](https://arxiv.org/abs/2412.08116)"
    made = f"Made with dakd (method: {method}); card written by version `{code_version()}`."
    return f"# {model.title}: {title}\n\n{net}\n\n{made}"


def use(model: Subject) -> str:
    """Lines of Python that load the model and use it."""
    if model.is_student:
        calls = [f'student = dakd.load_student("{model.file}")', 'result = student.predict("image.png")']
    else:
        sample = f"pairs = teacher.sample(8, {_sampling(model)}, seed=0)"
        calls = [f'teacher = dakd.load_teacher("{model.file}")', sample]
    return fenced("python", "\n".join(["import dakd", "", *calls]))


def _sampling(model: Subject) -> str:
    """Arguments of `Teacher.sample`: as the run generates, else the size of the training's crops and the defaults."""
    cfg = GenerateConfig() if model.config is None else model.config.generate
    size = cfg.size if model.config is not None else tuple(model.metadata.get("crop", cfg.size))
    given = f"size={size}, steps={cfg.sampling_steps}"
    if cfg.solver != "ddim":
        given += f', solver="{cfg.solver}"'
    return given if cfg.spacing is None else f'{given}, spacing="{cfg.spacing}"'


def class_table(model: Subject) -> str:
    """Id, name, colour and share of each class."""
    classes, index = model.classes, trained_on(model, "prepare/train")
    shares = [None] * classes.num_classes if index is None else [100 * one for one in index["class_pixel_shares"]]
    rows = [
        [number, name, "#{:02x}{:02x}{:02x}".format(*colour), share]
        for number, (name, colour, share) in enumerate(zip(classes.names, classes.colours, shares))
    ]
    return table(["id", "class", "colour", "share of the training pixels, %"], rows)


def training_data(model: Subject) -> str:
    """The data that the model was trained on."""
    real = trained_on(model, "prepare/train")
    training_set = model.metadata.get("training_set", "real")
    facts = {"Dataset": _dataset_line(model), "Training images": real and _count(real)}
    if training_set == "synthetic":
        facts["Training images"] = "none in this training; the teacher of the pairs has seen some"
    if model.is_student:
        facts["Synthetic pairs"] = _synthetic_line(model)
    if "pseudo" in training_set:
        facts["Pseudo-labelled images"] = _pseudo_line(model)
    return bullets({name: value or _NOT_RECORDED for name, value in facts.items()})


def _dataset_line(model: Subject) -> str | None:
    if model.config is None:
        return None
    sensor = model.config.prepare.sensor
    return f"`{model.dataset}`{f', sensor {sensor}' if sensor else ''}: {DATASETS[model.config.prepare.dataset]}"


def _count(index: Mapping) -> str:
    sizes = ", ".join(f"{count} of {size}" for size, count in list(index["sizes"].items())[:5])
    more = f" and {len(index['sizes']) - 5} more sizes" if len(index["sizes"]) > 5 else ""
    return f"{index['num_samples']}, {index['num_labelled']} of them labelled ({sizes}{more} pixels)"


def _synthetic_line(model: Subject) -> str | None:
    count = model.metadata.get("num_synthetic")
    if count == 0 or model.metadata.get("training_set") in ("real", "real+pseudo"):
        return "none"
    if count is None:
        return None
    hard = model.metadata.get("loss", {}).get("hard_labels")
    labels = {True: "its hard labels", "both": "its soft and hard labels"}.get(hard, "its soft labels")
    return f"{count}, generated by a diffusion model, with {labels}{_refined(model)}"


def _refined(model: Subject) -> str:
    """How the pairs were refined, for the end of a line; a copy of a pair counts as one."""
    if model.config is None or not model.config.refine.is_set:
        return ""
    cfg, parts = model.config.refine, []
    if cfg.pixel_gate is not None:
        parts.append(f"pixels above {cfg.pixel_gate:g} times the mean loss of their class are ignored")
    if cfg.repeats > 1:
        parts.append(f"the hardest stand in the set {cfg.repeats} times")
    return f"; refined by a student of real images: {', '.join(parts)}"


def _pseudo_line(model: Subject) -> str | None:
    count = model.metadata.get("num_pseudo")
    is_own = model.config is None or model.config.train_saross.pseudo is None
    by = "by the student of the training set real" if is_own else "elsewhere, see train_saross.pseudo"
    return None if count is None else f"{count}, labelled {by}"


def training(model: Subject) -> str:
    """How it was trained; facts that are not recorded are listed as such."""
    meta = model.metadata
    optimizer = meta.get("optimizer", {})
    facts = {"Steps": _steps(model), "Global batch": meta.get("global_batch"), "Crop": pixels(meta.get("crop"))}
    facts |= {"Augmentation": _augmentation(meta), "Optimizer": _optimizer_line(optimizer)}
    facts |= {"Loss": _loss_line(meta)} if model.is_student else {"Diffusion": _diffusion_line(meta)}
    facts |= {"Weights": _weights_line(meta, optimizer), "Seed": meta.get("seed")}
    if model.is_student:
        starts = f"a student with the sha256 `{meta['init_from']}`" if meta.get("init_from") else pretrained(model)
        facts["Starts from" if meta.get("init_from") else "Encoder starts from"] = starts or "random weights"
    facts |= _held_out(meta)
    return bullets({name: _NOT_RECORDED if value is None else value for name, value in facts.items()})


def _steps(model: Subject) -> str | None:
    """Of this training; a teacher's earlier stages are named by their settings."""
    records = [] if model.folder is None else read_records(model.folder / METRICS)
    total = model.metadata.get("optimizer", {}).get("total_steps") or (records[-1]["step"] if records else None)
    if total is None or model.config is None or model.metadata["kind"] != "jointnet":
        return None if total is None else str(total)
    cfg, stage = model.config.train_jointnet, model.metadata.get("stage", 3)
    before = [f"stage {number}: {one.steps}" for number, one in enumerate((cfg.stage1, cfg.stage2)[: stage - 1], 1)]
    return ", ".join([*before, f"stage {stage}: {total}"])


def _augmentation(meta: Mapping) -> str | None:
    if "flip" not in meta:
        return None
    used = [name for name, is_on in (("flips", meta["flip"]), ("mosaics of pairs", meta.get("mosaic"))) if is_on]
    return ", ".join(["random crops", *used])


def _optimizer_line(optimizer: Mapping) -> str | None:
    if not optimizer:
        return None
    return (
        f"AdamW, learning rate {optimizer['lr']:g} ({optimizer['lr_decay']}, {optimizer['warmup_steps']} steps of "
        f"warm-up), weight decay {optimizer['weight_decay']:g}, gradients clipped at {optimizer['grad_clip']:g}"
    )


def _loss_line(meta: Mapping) -> str | None:
    loss = meta.get("loss")
    if loss is None:
        return None
    terms = [f"{loss['ce']:g} cross-entropy", f"{loss['dice']:g} Dice"]
    if meta.get("training_set", "real") != "real" and loss.get("hard_labels") is not True:
        form = loss.get("kd_form", "temperature")
        terms.append(f"{loss['kd']:g} distillation (form {form}, temperature {loss['temperature']:g})")
    if loss.get("boundary"):
        terms.append(f"{loss['boundary']:g} boundary term")
    return " + ".join(terms)


def _diffusion_line(meta: Mapping) -> str:
    schedule = meta["schedule"]
    facts = [f"cosine schedule of {schedule['num_train_timesteps']} steps", f"balancing factor b {meta['b']:.4g}"]
    if meta["kind"] == "jointnet":
        facts.append(f"label loss {meta.get('label_loss', 'ce')}")
    if meta.get("sigma_data") is not None:
        facts.append(f"sigma_data {meta['sigma_data']:.4g}")
        facts.append(f"image loss of the {'output' if meta.get('image_loss') == 'output' else 'clean image'}")
    return ", ".join(facts)


def _weights_line(meta: Mapping, optimizer: Mapping) -> str | None:
    kind = meta.get("weights")
    if kind == "ema":
        return f"exponential moving average (decay {optimizer['ema_decay']:g})" if optimizer else "moving average"
    if kind == "posthoc":
        return f"moving average of relative length {meta['ema_length']:g}, made after the training"
    return "of the last step" if kind == "raw" else kind


def _held_out(meta: Mapping) -> dict[str, str]:
    """Lines on the held-out part of the training samples; none where the training held none out."""
    facts, settings = {}, meta.get("validation")
    if (scores := meta.get("validation_scores")) and settings:
        which = "the best of all steps scored on them" if settings["keep"] == "best" else "the last"
        ended = scores["ended_early_at"]
        early = "" if ended is None else f"; the training ended early, after step {ended}"
        facts["Held-out training images"] = (
            f"{scores['num_images']} ({100 * settings['share']:g} %); the weights are of step {scores['step']}, "
            f"{which}, with an mIoU of {100 * scores['miou']:.2f} %{early}"
        )
    if (temperature := meta.get("temperature")) is not None:
        facts["Calibration"] = f"logits are divided by {temperature:.4g} for the probabilities; no class changes"
    return facts


def pretrained(model: Subject) -> str | None:
    """The file of the public checkpoint that a student's encoder started from, as Markdown."""
    path = model.student.pretrained if model.is_student else None
    return f"`{file_name(path)}`" if path else None


def limits(model: Subject) -> str:
    """The known limits of the model."""
    lines = [
        "The input is one channel of SAR amplitude in 8-bit grey values, as in the training data; calibrated "
        "backscatter, decibels and optical images are not valid input.",
        "Other sensors, bands, polarisations, resolutions and incidence angles than those of the training data were "
        "not tested.",
        "Look-alikes (low wind, algae, rain cells), ships and land may be taken for oil; check detections near them.",
        "Not validated for operational use: no alarm, penalty or clean-up should rest on its output only.",
    ]
    if model.dataset == "simulated":
        lines.append("It was trained on simulated images; its quality on measured ones is not known.")
    if model.is_student and "synthetic" in model.metadata.get("training_set", ""):
        lines.append("It learned in part from generated images and the generator's labels, whose errors it may repeat.")
    if model.is_student and "pseudo" in model.metadata.get("training_set", ""):
        lines.append("It learned in part from the labels of another student, whose errors it may repeat.")
    if not model.is_student:
        lines.append(
            "Generated pairs are not measurements, and may resemble training images: `dakd generate --audit` searches "
            "for such pairs."
        )
    return "\n".join(f"- {line}" for line in lines)


def licence_section(model: Subject) -> str:
    """The licences of the weights, the code, the data and the encoder."""
    stated = "not stated by its author" if model.licence is None else plain(model.licence)
    facts = {"Weights": stated, "Code (dakd)": "Apache-2.0"}
    if model.dataset is not None:
        facts["Data"] = DATASETS[model.dataset]
    if pretrained(model) and str(model.student.encoder).startswith("mamba_vision"):
        facts["Encoder"] = (
            "started from MambaVision's public weights, which are CC BY-NC-SA 4.0: non-commercial use only"
        )
    elif pretrained(model):
        facts["Encoder"] = f"started from {pretrained(model)}, whose licence applies too"
    return bullets(facts)


def citation() -> str:
    """The paper."""
    return fenced(
        "bibtex",
        "@misc{moon2024dakd,\n"
        "  title  = {DAKD: Data Augmentation and Knowledge Distillation using Diffusion Models for SAR Oil Spill "
        "Segmentation},\n"
        "  author = {Moon and Yun and Kim and Lee and Kim},\n"
        "  year   = {2024},\n"
        "  eprint = {2412.08116},\n"
        "  archivePrefix = {arXiv}\n"
        "}",
    )


def settings(model: Subject) -> str:
    """The configuration's sections that made these weights, without the machine's; else the metadata's settings."""
    if model.config is None:
        left_out = ("kind", "classes", "data", "weights", "starts_from")
        tree = {name: value for name, value in model.metadata.items() if name not in left_out}
    else:
        steps = _steps_of_student(model) if model.is_student else ("balance", "train_jointnet", "generate")
        whole = model.config.model_dump(mode="json")
        tree = {name: {k: v for k, v in whole[name].items() if k not in _LEFT_OUT} for name in ("prepare", *steps)}
        tree = {"seed": whole["seed"]} | tree
    return fenced("yaml", yaml.safe_dump(without_places(tree), sort_keys=False, allow_unicode=True).rstrip())


def _steps_of_student(model: Subject) -> tuple[str, ...]:
    training_set = model.metadata.get("training_set", "")
    steps = ["pseudo_label"] if "pseudo" in training_set else []
    steps += ["refine"] if "synthetic" in training_set and model.config.refine.is_set else []
    return (*steps, "train_saross")


def plain(text: object) -> str:
    """Text that stays text within a line of Markdown or a cell of a table."""
    return re.sub(r"([|<>`*_\[\]\\])", r"\\\1", " ".join(str(text).split()))


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table; a column without a single value is left out."""
    columns = [place for place in range(len(header)) if any(row[place] is not None for row in rows)]
    lines = [[header[place] for place in columns], ["---" if place == 0 else "--:" for place in columns]]
    lines += [[plain(format_cell(row[place])) for place in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def pixels(size: Sequence[int] | None) -> str | None:
    return None if size is None else f"{size[0]} x {size[1]} pixels"


def fenced(language: str, text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"

"""The settings of `train_saross`: the student, its loss and its training sets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dakd.config.base import Fraction, Positive, Section, Size
from dakd.config.training import EngineConfig, OptimizerConfig

TrainingSet = Literal["real", "real+synthetic", "synthetic"]

# Students by name, each with the encoder that it takes where none is named: SAROSS-Net's is the paper's; those of the
# others are what their authors (deeplabv2, segformer, cbdnet) or their library takes, and for DeepLabV3+ the best one
# on OSD (ResNet-50, arXiv 2305.01386). The paper names the rivals' encoders nowhere (inferred).
DEFAULT_ENCODERS: dict[str, str | None] = {
    "saross": "mamba_vision_b",
    "unet": "resnet34",
    "linknet": "resnet34",
    "pspnet": "resnet34",
    "deeplabv3plus": "resnet50",
    "segformer": "mit_b2",
    "unetplusplus": "resnet34",
    "deeplabv2": "resnet101",
    "cbdnet": "resnet34",
    "sam_oil": "fasterrcnn_resnet50_fpn",
}
_SAROSS_SETTINGS = ("decoder_channels", "caft_ratio", "caft_heads", "skip_module")


class SamOilConfig(Section):
    """SAM-OIL: what becomes of the detector's boxes (Wu et al. 2024); its sizes are stated nowhere (inferred)."""

    min_score: Fraction = 0.25  # of a detection that is kept
    min_pixels: Positive = 4  # of a component of the label that counts as an object
    max_objects: Positive = 200  # of a training image, the largest ones: a speckled label would have thousands
    # Class ids, the first of which wins a pixel that masks of several classes claim; None: the higher score wins.
    order: tuple[Positive, ...] | None = None
    adapter_channels: Positive = 64  # inner width of the adapter on SAM's image embeddings
    max_masks: Positive = 16  # objects an image that the adapter learns from in a step
    mask_loss: Annotated[float, Field(ge=0)] = 1.0  # BCE + Dice of the masks against the detector's loss
    sam_config: dict[str, Any] | None = None  # SAM's sizes; None reads config.json of the folder `pretrained`


class StudentConfig(Section):
    """SAROSS-Net (an encoder and the CAFT triangle), or one of its rivals by name."""

    name: Literal[
        "saross", "unet", "linknet", "pspnet", "deeplabv3plus", "segformer", "unetplusplus", "deeplabv2", "cbdnet",
        "sam_oil",
    ] = "saross"  # fmt: skip
    # None: the one of DEFAULT_ENCODERS, which takes its place. saross: mamba_vision_{t,t2,s,b,l}; mamba_vision (with
    # encoder_options); resnet18; resnet34; timm:<name of a feature extractor>. cbdnet: resnet18, resnet34. The others:
    # any encoder of segmentation_models_pytorch. sam_oil: the detector, a fasterrcnn_... of torchvision (resnet50_fpn,
    # resnet50_fpn_v2, mobilenet_v3_large_fpn, mobilenet_v3_large_320_fpn) or package.module:Class.
    encoder: str | None = None
    # saross, cbdnet: of the encoder. deeplabv2: rates, output_stride. sam_oil: of the detector. The others: keyword
    # arguments of their class in segmentation_models_pytorch, such as decoder_channels of unet.
    encoder_options: dict[str, Any] = Field(default={})
    pretrained: str | None = None  # a public checkpoint file of the encoder; sam_oil: SAM's folder
    # Of saross alone:
    decoder_channels: tuple[Positive, Positive, Positive, Positive] = (256, 256, 128, 64)  # inferred
    caft_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5  # inner width over HR width (inferred)
    caft_heads: tuple[Positive, Positive, Positive] = (1, 2, 4)  # rows 1, 2, 3 (inferred)
    skip_module: Literal["caft", "conv3x3", "none"] = "caft"
    sam_oil: SamOilConfig = SamOilConfig()  # of sam_oil alone

    @model_validator(mode="before")
    @classmethod
    def _default_encoder(cls, tree: Any) -> Any:
        """The encoder stands in what is saved, so that it does not move with a default."""
        if not isinstance(tree, dict) or tree.get("encoder") is not None:
            return tree
        name = tree.get("name", "saross")
        return tree | {"encoder": DEFAULT_ENCODERS.get(name) if isinstance(name, str) else None}

    @model_validator(mode="after")
    def _has_its_own_settings(self) -> StudentConfig:
        fields = type(self).model_fields
        foreign = [key for key in _SAROSS_SETTINGS if getattr(self, key) != fields[key].default]
        if self.name != "saross" and foreign:
            raise ValueError(
                f"{', '.join(foreign)}: of SAROSS-Net alone, found with {self.name}; leave them out, or replace the "
                f"whole section: train_saross.student={{name: {self.name}}}"
            )
        if self.name != "sam_oil" and self.sam_oil != fields["sam_oil"].default:
            raise ValueError(f"sam_oil holds settings of the student sam_oil, found with {self.name}; leave it out")
        return self


class StudentLossConfig(Section):
    """L = l_ce CE + l_kd tau^2 KD + l_dice Dice, a sum over samples divided by the global batch (paper, Eq. 8-10)."""

    ce: Annotated[float, Field(ge=0)] = 1.0  # inferred
    kd: Annotated[float, Field(ge=0)] = 1.0  # inferred
    dice: Annotated[float, Field(ge=0)] = 1.0  # inferred
    temperature: Annotated[float, Field(gt=0)] = 2.0  # tau (inferred)
    # What the stored codes may cost a softened target, as the codec states it; beyond, training is refused.
    max_target_error: Fraction = 0.01
    dice_samples: Literal["real", "all"] = "real"  # inferred
    dice_form: Literal["soft", "generalized"] = "soft"
    class_weights: tuple[float, ...] | None = None
    hard_labels: bool = False  # synthetic samples carry the teacher's argmax and are treated as real ones
    # What a student learns from soft labels; temperature is the paper's, the others (train/distillation.py) compare.
    kd_form: Literal["temperature", "confidence", "standardized", "dist"] = "temperature"
    dist_inter: Annotated[float, Field(ge=0)] = 1.0  # DIST's beta, of its term over classes (Huang et al. 2022)
    dist_intra: Annotated[float, Field(ge=0)] = 1.0  # DIST's gamma, of its term over pixels (Huang et al. 2022)
    # Weight of CBD-Net's boundary term (train/boundary_loss.py) on samples with hard labels, for any student; CBD-Net's
    # own rows have 1 (inferred).
    boundary: Annotated[float, Field(ge=0)] = 0.0


class TrainSarossConfig(Section):
    """The student on real and synthetic pairs."""

    student: StudentConfig = StudentConfig()
    loss: StudentLossConfig = StudentLossConfig()
    training_sets: tuple[TrainingSet, ...] = ("real+synthetic",)  # one student each, with equal numbers of steps
    crop: Size = (512, 512)
    mosaic: bool = True  # four synthetic images tiled to one of twice the size
    flip: bool = True  # inferred
    synthetic: str | None = None  # folder or URL of the synthetic pairs; None: what this run has generated
    num_synthetic: Positive | None = None  # use only the first N pairs; None takes all
    # Share of an epoch's samples that is synthetic (a mosaic is one), beside every real one once; the synthetic pairs
    # then go round at their own pace. None: every pair once an epoch.
    synthetic_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    # How batch norm normalises while training (inferred). local: by each rank's micro-batch, so that the losses depend
    # on how the global batch is cut; sync: by the micro-batches of all ranks (GPUs); frozen: by the statistics that the
    # encoder came with, so that neither ranks nor micro-batch matter. Drop-path is a function of (seed, position).
    batch_norm: Literal["local", "sync", "frozen"] = "local"
    global_batch: Positive = 16
    micro_batch: Positive = 16
    epochs: Positive = 200  # of real + synthetic; every training set gets the steps that this makes
    steps: Positive | None = None  # overrides epochs
    optimizer: OptimizerConfig = OptimizerConfig(lr_decay="poly")
    engine: EngineConfig = EngineConfig(sample_every=0)

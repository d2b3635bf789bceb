"""dakd: joint diffusion of SAR images and labels, generation at scale, and distillation for oil spill segmentation."""

__version__ = "0.1.0"

"""One step of the DDIM sampler for image and label together."""

from dakd.kernels.ddim_step.api import DdimStep, ddim_step

__all__ = ["DdimStep", "ddim_step"]

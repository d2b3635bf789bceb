"""The forward diffusion process for image and label together: class ids and grey values in, both noisy inputs out."""

from dakd.kernels.joint_noising.api import joint_noising

__all__ = ["joint_noising"]

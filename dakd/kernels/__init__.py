"""Six operations, each in a folder of its own, a "room"; README.md describes both.

The public functions are exported here: `dakd.kernels.selective_scan(...)`. They are imported at once, not on demand: a
room and its function share a name, and importing a room later would put the module in the function's place.
"""

from dakd.kernels.ddim_step import ddim_step
from dakd.kernels.depthwise_conv1d import depthwise_conv1d
from dakd.kernels.joint_noising import joint_noising
from dakd.kernels.seg_loss import seg_loss
from dakd.kernels.selective_scan import selective_scan
from dakd.kernels.transposed_attention import transposed_attention

__all__ = ["ddim_step", "depthwise_conv1d", "joint_noising", "seg_loss", "selective_scan", "transposed_attention"]

"""Set-up before any import of triton, whose kernels run in the interpreter without a GPU; signals as in a terminal."""

import os

import torch
from hang_up import heed_signals

heed_signals()
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

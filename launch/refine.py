"""`dakd refine` as a script, for deepspeed, torchrun, SLURM and plain python."""

import sys

from dakd.cli import run_step

if __name__ == "__main__":
    sys.exit(run_step("refine"))

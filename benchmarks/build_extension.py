"""Sees to it that dakd/_C.so holds CUDA operations: takes the one that is there, or builds it for this GPU alone."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import torch
from machine import ROOT

from dakd.kernels import extension


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device != "cuda":
        print(f"note: nothing is built for {device}; dakd/_C.so: {extension.missing() or 'loads'}")
        return
    if extension.has_cuda():
        print("note: dakd/_C.so is there and has CUDA operations")
        return
    print(f"dakd/_C.so: {extension.missing() or 'has no CUDA operations'}; building it", flush=True)
    major, minor = torch.cuda.get_device_capability()
    start = time.monotonic()
    environment = os.environ | {"DAKD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)
    seconds = time.monotonic() - start
    # A process of its own: this one has decided already that there is none.
    probe = "from dakd.kernels import extension; raise SystemExit(extension.missing() or not extension.has_cuda())"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)
    print(f"note: built for sm_{major}{minor} in {seconds:.0f} s")


if __name__ == "__main__":
    main()

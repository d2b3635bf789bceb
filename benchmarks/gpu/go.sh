#!/usr/bin/env bash
# Called on a GPU host that has torch and Triton and no network, in a copy of the source tree that has .gpu_kit/:
#
#     bash .gpu_kit/go.sh             # the first visit; further arguments go to benchmarks/gpu_run.py
#     bash .gpu_kit/go.sh --second
#
# Installs what the host lacks and starts the run. A part that fails is reported in one line, and the run starts without it.
# DAKD_PYTHON names the interpreter; default: python3. benchmarks/gpu/kit.py copies this file into the kit.
set -euo pipefail
KIT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$KIT/.."
# kit.py reads this line: Triton's cache names its files by absolute paths, so they are known when the kit is made.
PLACE=/tmp/dakd-gpu-kit
PYTHON=${DAKD_PYTHON:-python3}
export PYTHONUNBUFFERED=1
# Asking whether there is a GPU must not start CUDA.
export PYTORCH_NVML_BASED_CUDA_CHECK=1

# say WHAT [OUTPUT]: WHAT, and the last line of a tool's output, where the cause is.
say() { echo "go.sh: $1${2:+: ${2##*$'\n'}}" >&2; }

install() {
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --root-user-action=ignore --target "$PLACE/site" "$@" 2>&1
}

install_wheels() {
    rm -rf "$PLACE/site"
    mkdir -p "$PLACE/site" || return 0
    if install "$KIT"/wheels/*.whl >/dev/null; then return; fi
    # A broken wheel makes all fail together, so install them one by one.
    for wheel in "$KIT"/wheels/*.whl; do
        said=$(install --upgrade "$wheel") || say "${wheel##*/} is not installed" "$said"
    done
}

unpack_triton_cache() {
    mkdir -p "$PLACE/triton" || return 0
    export TRITON_CACHE_DIR=$PLACE/triton
    said=$(tar xzf "$KIT/triton.tgz" --no-same-owner -C "$PLACE/triton" 2>&1) ||
        say "Triton's cache is not unpacked, and kernels are compiled on the way" "$said"
}

place_extension() {
    if cmp -s "$KIT/_C.so" dakd/_C.so; then return; fi
    if [ -e dakd/_C.so ] && "$PYTHON" -c '
import sys, torch
from dakd.kernels import extension
sys.exit(extension.missing() or (torch.cuda.is_available() and not extension.has_cuda()))' 2>/dev/null; then return; fi
    said=$(cp "$KIT/_C.so" dakd/._C.so.new 2>&1 && mv dakd/._C.so.new dakd/_C.so 2>&1) ||
        say "there is no compiled library, and the other backends serve" "$said"
}

install_wheels
export PYTHONPATH=$PLACE/site:$PWD${PYTHONPATH:+:$PYTHONPATH}
unpack_triton_cache
place_extension
if [ -e "$KIT/commit" ]; then DAKD_COMMIT=$(<"$KIT/commit"); export DAKD_COMMIT; else say "the kit does not name its commit"; fi
# These seconds are part of the run's limit.
export DAKD_PREPARED_S=$SECONDS
exec "$PYTHON" benchmarks/gpu_run.py "$@"

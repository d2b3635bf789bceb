"""The sampling loop with captured steps: its speed; its bits, which must be the eager loop's; and that it never waits.

Twenty steps are timed and extrapolated to two hundred. Exit status 3: the numbers differ, or the loop synchronised.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lib.device import synchronise
from lib.nets import B_FACTOR, NUM_CLASSES, joint_net, teacher_side
from lib.race import Races, parse
from lib.table import Row

from dakd.diffusion.sampler import PairSampler, start_noise
from dakd.diffusion.schedule import CosineSchedule

_STEPS, _SAMPLING_STEPS, _ROUNDS = 20, 200, 2
_WATCHED_BELOW = 16  # a larger batch does the same, and takes seconds


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    races = Races.of(options)
    net = joint_net(options.tiny, options.device, torch.bfloat16).to(memory_format=torch.channels_last).eval()
    side, wrong = teacher_side(options.tiny), []
    for size, eta in ((2, 0.0), (2, 1.0)) if options.tiny else ((16, 0.0), (1, 0.0), (1, 1.0), (64, 0.0)):
        wrong += measure_loops(races, net, size, side, eta)
    for fault in wrong:
        print(f"WRONG   {fault}")
    print(f"note: {'; '.join(wrong) if wrong else 'captured loops equal eager ones and never synchronise'}"
          if races.is_gpu else "note: only eager loops: a CPU captures nothing")  # fmt: skip
    if wrong:
        raise SystemExit(3)


def measure_loops(races: Races, net, size: int, side: int, eta: float, steps: int = _STEPS) -> list[str]:
    """Times the eager loop and the captured one, and returns the faults of the latter, in words."""
    x, y = (noise.to(races.device) for noise in start_noise(0, range(size), (side, side), NUM_CLASSES))
    ids = torch.arange(size, device=races.device)
    shape, what = f"B {size}, {side}x{side}", f"{steps} steps" + (", eta 1" if eta else "")
    settings = dict(b=B_FACTOR, eta=eta, device=races.device, dtype=torch.bfloat16)
    results, rows, wrong = {}, [], []
    for name in ("eager", "dakd") if races.is_gpu else ("eager",):
        sampler = PairSampler(net, CosineSchedule(), steps, **settings, capture=name == "dakd")

        def loop(sampler=sampler):
            return sampler(x, y, sample_ids=ids)

        start = time.perf_counter()
        results[name] = loop()
        synchronise(races.device)
        first_s = time.perf_counter() - start
        rows.append(_time(races, shape, what, name, size, loop, steps))
        rows[-1].note = f"first call, with compilers and capture, {first_s:.1f} s"
        if races.is_gpu and size <= _WATCHED_BELOW and _synchronises(loop):
            wrong.append(f"{name} loop at {shape} synchronises")
    rows[-1].times_eager = rows[0].time_us / rows[-1].time_us
    races.keep(rows)
    if races.is_gpu and not all(torch.equal(a, b) for a, b in zip(results["eager"], results["dakd"])):
        wrong.append(f"captured loop at {shape}, eta {eta:g} differs from the eager one")
    return wrong


def _time(races: Races, shape: str, what: str, name: str, size: int, loop, steps: int) -> Row:
    times_s, host_ms = [], []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        host_ms.append(races.host_ms(loop))
        times_s.append(time.perf_counter() - start)
    time_s, scale = min(times_s), _SAMPLING_STEPS / steps
    return Row("gen_loop", shape, "bf16", what, name, time_s * 1e6, "wall clock", time_s * 1e6,
               images_per_s=size / (time_s * scale), host_ms=min(host_ms) * scale, layout="channels_last")  # fmt: skip


def _synchronises(loop) -> bool:
    """Whether torch sees the host wait for the GPU within the loop."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop()
    except RuntimeError as error:
        print(f"synchronised: {str(error).splitlines()[0]}")
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


if __name__ == "__main__":
    main()

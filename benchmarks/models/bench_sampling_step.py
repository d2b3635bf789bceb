"""One sampling step of the paper's SAR-JointNet: eager, channels_last, compiled, and as `generate` runs it.

The last is the captured step with the DDIM update; the others are the networks alone. --compiled races
torch.compile (a minute or more to compile) at one batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lib.calls import compile_with, count_launches
from lib.nets import B_FACTOR, NUM_CLASSES, joint_net, noisy_pair, teacher_side, unet_config
from lib.race import Races, parse
from lib.table import EAGER, Row
from roofline import jointnet_flop

from dakd.diffusion.sampler import PairSampler
from dakd.diffusion.schedule import CosineSchedule

_REPLAYED_STEPS, _SAMPLING_STEPS = 4, 200


def main() -> None:
    options = parse(__doc__.splitlines()[0], choices=("uncompiled", "compiled"))
    races = Races.of(options)
    side, chosen = teacher_side(options.tiny), options.only or ["uncompiled", "compiled"]
    flop = jointnet_flop(unet_config(options.tiny), NUM_CLASSES, (side, side))
    plain = joint_net(options.tiny, options.device, torch.bfloat16).eval()
    fast = joint_net(options.tiny, options.device, torch.bfloat16).to(memory_format=torch.channels_last).eval()
    if "uncompiled" in chosen:
        for size in (2,) if options.tiny else (16, 1, 64):
            race_step(races, plain, fast, size, side, flop)
    if "compiled" in chosen:
        race_step(races, plain, fast, 2 if options.tiny else 16, side, flop, with_compile=True)


def race_step(
    races: Races,
    plain,
    fast,
    size: int,
    side: int,
    flop: int,
    *,
    with_compile: bool = False,
    with_launches: bool = True,
    note: str = "",
) -> list[Row]:
    """Races one step at a batch size.  plain, fast: the net as NCHW and as channels_last.  note: of every row."""
    x, y, t = noisy_pair(size, side, races.device, torch.bfloat16)
    schedule = CosineSchedule()
    sampler = PairSampler(fast, schedule, _REPLAYED_STEPS, b=B_FACTOR, device=races.device, dtype=torch.bfloat16,
                          capture=races.is_gpu)  # fmt: skip
    nets = {"eager": plain, "channels_last": fast}
    if with_compile:
        nets = {"eager": plain, "compile": compile_with(fast, races.compile_mode())}

    def step_of(net):
        @torch.no_grad()
        def step() -> object:
            return net(x, y, t)

        return step

    calls: dict[str, Callable[[], object]] = {name: step_of(net) for name, net in nets.items()}
    calls["dakd"] = lambda: sampler(x, y)
    per_call = {"dakd": _REPLAYED_STEPS}

    def facts(name: str, timing) -> dict:
        count = per_call.get(name, 1)
        launches = round(count_launches(calls[name]) / count) if races.is_gpu and with_launches else None
        return dict(
            host_ms=races.host_ms(calls[name]) / count,
            launches=launches,
            peak_gb=races.peak_gb(calls[name]),
            images_per_s=size / (timing.called_us * 1e-6 * _SAMPLING_STEPS),
            layout="contiguous" if name == EAGER else "channels_last",
            note=", ".join(filter(None, ("with the DDIM update" if name == "dakd" else "",
                                         "captured" if name == "dakd" and races.is_gpu else "", note))),
        )

    contestants = {name: [call] for name, call in calls.items()}
    return races.race("unet_step", f"B {size}, {side}x{side}", "bf16", "forward", contestants, flop=flop * size,
                        facts=facts, per_call=per_call)  # fmt: skip


if __name__ == "__main__":
    main()

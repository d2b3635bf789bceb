"""`make gpu-e2e`: on a GPU host, in less than eight minutes: sampling, training, every op at the rest of its shapes.

First four questions answered by a profile (questions.py); then the sampler's captured loop, a sampling step, training
steps of teacher and student, whole blocks, and the rooms at the shapes that `make gpu-check` leaves out. Needs torch
with CUDA and Triton, and pydantic, PyYAML, safetensors, webdataset and pillow; takes DeepSpeed along where it is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from steps import BENCHMARKS, Step, parse, run_all


def steps(device: str, is_tiny: bool, folder: str) -> list[Step]:
    common = ["--device", device, "--csv", f"{folder}/end_to_end.csv", *(["--tiny"] if is_tiny else [])]

    def net(name: str, script: str, limit_s: float, *only: str, proves: bool = False) -> Step:
        chosen = [word for part in only for word in ("--only", part)]
        return Step(name, [str(BENCHMARKS / script), *common, *chosen], limit_s, proves=proves)

    unet, train, blocks = "generate/bench_unet_step.py", "train/bench_train_step.py", "blocks/bench_blocks.py"
    generated = net("gen_loop", "generate/bench_gen_loop.py", 75, proves=True)
    if is_tiny:  # every process takes seconds to start: fewer of them, and one room for all
        room = Step("depthwise_conv1d", [str(BENCHMARKS / "kernels" / "bench_depthwise_conv1d.py"), "--device", device,
                    "--shape", "batch=1,channels=2,length=3", "--csv", f"{folder}/depthwise_conv1d.csv",
                    "--seconds", "0.01"], 60, proves=True)  # fmt: skip
        return [net("questions", "questions.py", 60), generated, net("unet_step", unet, 60),
                net("train_step", train, 90), net("blocks", blocks, 60), room]  # fmt: skip
    return [
        net("questions", "questions.py", 60),
        generated,
        net("unet_step", unet, 70, "uncompiled"),
        net("train_step", train, 80, "stage3", "stage2"),
        net("student_step", train, 60, "student"),
        net("caft_block", blocks, 50, "caft_block"),
        *rooms(device, folder),
        net("gn_silu", blocks, 40, "gn_silu"),
        net("mixer", blocks, 40, "mixer"),
        net("unet_compiled", unet, 120, "compiled"),
    ]


def rooms(device: str, folder: str) -> list[Step]:
    """The shapes that count, less the main one of each op, which `make gpu-check` measures."""
    model = [(16, 256, 64, 64), (16, 512, 32, 32), (1, 128, 168, 320), (1, 256, 84, 160), (1, 512, 42, 80),
             (16, 128, 64, 64), (16, 256, 32, 32), (16, 512, 16, 16)]  # fmt: skip
    caft = [_caft(*shape, inner=shape[1] // 2, heads=shape[1] // 128) for shape in model]
    full_width = [_caft(16, 128, 128, 128, inner=128, heads=heads) for heads in (8, 4, 2)]
    ddim = [_numbers(batch=batch, num_classes=classes, height=256, width=256)
            for batch, classes in ((64, 5), (1, 5), (256, 5), (1, 2), (16, 2), (64, 2), (256, 2))]  # fmt: skip
    loss = [_numbers(batch=batch, synthetic=batch // 2, num_classes=classes, height=height, width=width)
            for batch, classes, height, width in ((16, 2, 256, 256), (16, 5, 640, 1248))]  # fmt: skip
    scans = [_numbers(batch=batch, channels=channels, states=8, length=length)
             for batch, channels, length in ((144, 512, 49), (1, 512, 780), (16, 256, 1024))]  # fmt: skip
    return [
        _room("seg_loss", device, folder, loss, 40, "--compile", "default"),
        _room("ddim_step", device, folder, ddim[:2], 30, "--compile", "default"),
        _room("ddim_step", device, folder, ddim[2:], 40, name="ddim_step, more"),
        _room("ddim_step", device, folder, [ddim[0]], 25, "--stochastic", name="ddim_step, eta 1"),
        _room("transposed_attention", device, folder, [caft[2], caft[0]], 50, "--compile", "default"),
        _room("transposed_attention", device, folder, [caft[1], *caft[3:], *full_width], 50,
              name="transposed_attention, more"),
        _room("selective_scan", device, folder, scans, 60),
        _room("joint_noising", device, folder, [_numbers(batch=256, num_classes=5, height=256, width=256)], 25,
              "--compile", "default"),
    ]  # fmt: skip


def _caft(batch: int, channels: int, height: int, width: int, inner: int, heads: int) -> str:
    return _numbers(batch=batch, inner=inner, channels=channels, height=height, width=width, num_heads=heads)


def _numbers(**sizes: int) -> str:
    return ",".join(f"{name}={value}" for name, value in sizes.items())


def _room(op: str, device: str, folder: str, shapes: Sequence[str], limit_s: float, *more: str, name: str = "") -> Step:
    chosen = [word for shape in shapes for word in ("--shape", shape)]
    arguments = [str(BENCHMARKS / "kernels" / f"bench_{op}.py"), "--device", device, "--dtype", "bf16", *chosen, *more]
    return Step(name or op, [*arguments, "--seconds", "0.2", "--csv", f"{folder}/{op}.csv"], limit_s, proves=True)


def main() -> int:
    options = parse("Times sampling, training and every op on a GPU.",
                    "a CUDA device, a CUDA build of torch 2.11 or newer and Triton")  # fmt: skip
    return run_all(steps(options.device, options.tiny, str(options.folder)), options)


if __name__ == "__main__":
    raise SystemExit(main())

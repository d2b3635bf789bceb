"""The core needs only its core dependencies, and importing it only makes definitions."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dakd.kernels import triton_runtime

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = ("deepspeed", "wandb", "timm", "torchvision", "triton", "mamba_ssm", "causal_conv1d", "diffusers", "pytest",
            "scipy", "einops", "skimage", "hypothesis", "segmentation_models_pytorch", "transformers")

# What a GPU host without network may lack, besides torch and Triton.
ABSENT_ON_A_GPU_HOST = ("pydantic", "pydantic_core", "zstandard", "webdataset", "deepspeed", "isal", "wandb",
                        "diffusers")  # fmt: skip

BLOCKER = """
import importlib.machinery, sys
class WithoutSome(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {blocked!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutSome
"""


def run_without_extras(code: str, blocked: tuple[str, ...] = OPTIONAL) -> str:
    script = BLOCKER.format(blocked=blocked) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_forward_and_backward_of_both_nets_run_without_any_extra():
    out = run_without_extras("""
        import torch
        from dakd.config import StudentConfig
        from dakd.kernels.seg_loss import seg_loss
        from dakd.models.jointnet import SARJointNet
        from dakd.models.registry import build_student
        net = SARJointNet(3, channels=(8, 16), blocks_per_level=1, attention_levels=(), norm_groups=8)
        x_hat, logits = net(torch.randn(1, 1, 8, 8), torch.randn(1, 3, 8, 8), torch.tensor([5]))
        (x_hat.sum() + logits.sum()).backward()
        options = dict(dim=8, in_dim=8, depths=[1, 1, 2, 2], num_heads=[1, 1, 2, 4], window_size=[8, 8, 4, 2])
        student = build_student(StudentConfig(encoder="mamba_vision", encoder_options=options, caft_heads=(1, 1, 1),
                                              decoder_channels=(16, 16, 16, 8)), 3)
        loss = seg_loss(student(torch.randn(2, 3, 40, 40)), torch.randint(0, 3, (2, 40, 40)))
        (loss.ce.sum() + loss.dice.sum()).backward()
        print("gradients", all(p.grad is not None for p in student.parameters() if p.requires_grad))
    """)
    assert out.strip().endswith("gradients True")


def test_every_op_runs_and_doctor_helps_where_nothing_can_be_compiled():
    # No Triton, no compiled library, no compiler: the reference serves, or a CPU variant that needs none of them; and
    # the report says what would be faster.
    out = run_without_extras("""
        import os
        os.environ["PATH"] = ""
        os.environ.pop("CXX", None)
        from importlib import import_module
        from pathlib import Path
        from dakd.doctor import diagnose
        from dakd.kernels import backend, extension
        from dakd.testing.inputs import DIFFERENTIABLE, operands
        from dakd.testing.numerics import forward_and_gradients
        extension._LIBRARY = Path("/nowhere/_C.so")
        for op in backend.OPS:
            function = getattr(import_module(f"dakd.kernels.{op}"), op)
            results = forward_and_gradients(function, operands(op, "tiny"), DIFFERENTIABLE[op])
            print(op, all(value.isfinite().all() for value in results.values()), backend.choose(op, "cpu").chosen)
        print(diagnose())
    """)
    assert "transposed_attention True cpu" in out
    for op in ("ddim_step", "joint_noising", "seg_loss", "selective_scan", "depthwise_conv1d"):
        assert f"{op} True reference" in out
    assert "extension      is not built; pip install --no-build-isolation -e ." in out
    assert "no g++ (to build the extension); apt-get install g++" in out
    assert "triton         not installed (GPU kernels); pip install triton" in out


def test_every_step_can_be_imported_without_extras():
    out = run_without_extras("""
        import sys
        import dakd.cli, dakd.doctor, dakd.pipeline
        import dakd.data.prepare, dakd.data.balance, dakd.generate.generate
        import dakd.evaluate.evaluate, dakd.report.report, dakd.predict.predict
        import dakd.train.jointnet, dakd.train.saross, dakd.train.dry_run
        print("dakd.train.dry_run" in sys.modules, "deepspeed" in sys.modules)
    """)
    assert out.split() == ["True", "False"]


@pytest.mark.skipif(triton_runtime.why_not("cuda") == "triton is not installed", reason="triton is not installed")
def test_kernels_sampler_and_their_benchmarks_need_neither_pydantic_nor_the_data_path():
    out = run_without_extras(f"""
        import pkgutil, sys
        from importlib import import_module
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
        import dakd.kernels, dakd.testing
        names = [found.name for area in (dakd.kernels, dakd.testing)
                 for found in pkgutil.walk_packages(area.__path__, area.__name__ + ".")]
        names += ["dakd.diffusion.sampler", "dakd.diffusion.schedule", "dakd.runtime.seeding", "lib.op_race",
                  "lib.undispatched_ops", "roofline", "rivals", "compile_check"]
        for name in names:
            import_module(name)
        print(*names)
    """, ABSENT_ON_A_GPU_HOST)  # fmt: skip
    for name in ("seg_loss.cuda", "selective_scan.triton_kernels", "transposed_attention.api", "testing.numerics"):
        assert name in out


def test_training_without_deepspeed_says_what_to_install():
    out = run_without_extras("""
        from dakd.train.zero import import_deepspeed
        try:
            import_deepspeed()
        except RuntimeError as error:
            print(error)
    """)
    assert "pip install -e '.[train]'" in out


def test_importing_draws_no_random_number_and_touches_no_gpu():
    out = run_without_extras("""
        import torch
        before = torch.get_rng_state()
        import dakd.train.jointnet, dakd.models.registry, dakd.kernels.selective_scan
        print(torch.equal(before, torch.get_rng_state()), torch.cuda.is_initialized())
    """)
    assert out.split() == ["True", "False"]


def test_doctor_names_every_operation_and_a_remedy():
    out = run_without_extras("""
        from dakd.doctor import diagnose
        print(diagnose())
    """)
    for name in ("deepspeed", "mamba-ssm", "transposed_attention", "selective_scan", "seg_loss", "pip install"):
        assert name in out

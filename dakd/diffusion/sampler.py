"""The sampler of pairs: image and label from noise, by one function (paper, inference listing and Eq. 21).

At every step the networks predict the clean image and the label's logits; the image estimate is clamped, the label
estimate is b (2 softmax(logits) - 1), and both states move by x_prev = A x_t + B x0_hat + C x0_hat_before (+ sigma z),
with the coefficients of a solver (diffusion/solvers.py). A label branch trained with L2 predicts the clean label
itself, which is clamped (diffusion/label_reading.py). The state is fp32 throughout; coefficients and timesteps are read
from device tables at a device step counter, so that nothing synchronises. On a GPU the step may be captured once into a
CUDA graph and replayed: at small batches Python cannot launch its several hundred kernels as fast as the GPU runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dakd.diffusion.label_reading import LOGITS, LabelReading
from dakd.diffusion.precondition import clean_image, skip_and_scale
from dakd.diffusion.schedule import CosineSchedule
from dakd.diffusion.solvers import solver_steps
from dakd.kernels.ddim_step import DdimStep, ddim_step
from dakd.runtime.seeding import Stream, numpy_rng

# (x_t, y_t, t) -> (x_hat, logits)
JointDenoiser = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_WARM_UPS = 3  # calls before a capture


class TimedDenoiser(Protocol):
    """A denoiser whose tensors of the timestep can be computed beforehand, as SAR-JointNet's can."""

    def embed_time(self, t: Tensor) -> list[Tensor]:
        """(B,) timesteps to tensors (B, width) that depend only on them."""

    def denoise(self, x_t: Tensor, y_t: Tensor, shifts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The call with the tensors of embed_time; tensors of one row serve the whole batch."""


def start_noise(seed: int, indices: Iterable[int], size: tuple[int, int], num_classes: int) -> tuple[Tensor, Tensor]:
    """Standard normal starts of the samples `indices`, drawn on the host: keyed by (seed, index) and nothing else.

    Returns x (B, 1, H, W) and y (B, K, H, W), fp32, on the CPU.
    """

    def draw(stream: Stream, channels: int) -> Tensor:
        shape = (channels, *size)
        drawn = [numpy_rng(seed, i, stream=stream).standard_normal(shape, dtype=np.float32) for i in indices]
        return torch.from_numpy(np.stack(drawn))

    indices = list(indices)
    return draw(Stream.START_IMAGE, 1), draw(Stream.START_LABEL, num_classes)


class State(NamedTuple):
    """Where a sample stands between two calls of the net.

    moved: the noisy pair.  before: the net's outputs of the call before, image and label; None before the first call
    and with a solver of first order.
    """

    moved: DdimStep
    before: tuple[Tensor, Tensor] | None = None


class PairSampler:
    """`num_steps` steps of a solver; eta = 0 is deterministic.

    solver, spacing: see diffusion/solvers.py; the defaults are the paper's.  num_calls: of the net, for each pair.
    net: a JointDenoiser; or, with tabulate_time, a TimedDenoiser whose weights do not change: its tensors of the
    timesteps are then computed once for all steps and looked up, with the same numbers.
    capture: replay one captured step (CUDA only); the numbers are those of the loop. A call captures again if its
    shapes, or with eta > 0 its seed, differ from those of the call before; this takes about as long as a few steps.
    Cast the network rather than call a capturing sampler under autocast: autocast drops its cast weights when it ends,
    while the graph would still read their memory.
    reading, sigma_data: the meaning of the label branch's and of the image branch's output.
    Raises ValueError for capture on another device, and for a solver that does not go with the spacing or eta.
    """

    def __init__(
        self,
        net: JointDenoiser | TimedDenoiser,
        schedule: CosineSchedule,
        num_steps: int,
        *,
        b: float,
        solver: str = "ddim",
        spacing: str | None = None,
        eta: float = 0.0,
        clip: float = 1.0,
        reading: LabelReading = LOGITS,
        sigma_data: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        capture: bool = False,
        tabulate_time: bool = False,
    ):
        if capture and torch.device(device).type != "cuda":
            raise ValueError(
                f"only CUDA devices can capture a step, and the sampler is on {device}; set generate.capture=false"
            )
        self.net = net
        self.b = b
        self.eta = eta
        self.clip = clip
        self.reading = reading
        self.device = torch.device(device)
        self.dtype = dtype
        self.capture = capture
        timesteps, coefficients = solver_steps(schedule, num_steps, solver, spacing, eta)
        self.num_calls = len(timesteps)
        self._timesteps, self._coefficients = timesteps.to(device), coefficients.to(device)
        self._looks_back = solver != "ddim"  # by its name: a look at values would fail on fake tensors
        table = schedule.noising_table(device)[self._timesteps]
        self._factors = None if sigma_data is None else skip_and_scale(table, sigma_data)
        self._tabulate_time = tabulate_time
        self._shifts: dict[int, ShiftTable] = {}  # by batch size
        self._captured: tuple[tuple, CapturedStep] | None = None

    @torch.no_grad()
    def __call__(
        self, x: Tensor, y: Tensor, *, sample_ids: Tensor | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """x: (B, 1, H, W) and y: (B, K, H, W) standard normal.  sample_ids: (B,) int64, keys of the noise of eta > 0.

        Returns the image (B, 1, H, W) in [-clip, clip], fp32, and the label's last logits (B, K, H, W).
        """
        image, output = self._sample(x, y, sample_ids, seed)
        return image, self.reading.to_logits(output if self.reading.label_update == "softmax" else output / self.b)

    def _sample(self, x: Tensor, y: Tensor, sample_ids: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
        x = x.to(self.device, torch.float32)
        y = y.to(self.device, torch.float32)
        ids = None if sample_ids is None else sample_ids.to(self.device)
        if self._tabulate_time and len(x) not in self._shifts:
            self._shifts[len(x)] = ShiftTable(self.net, self._timesteps, len(x))
        if self.capture:
            return self._replay(x, y, ids, seed)
        state = self.start(x, y)
        step = torch.zeros(1, dtype=torch.int64, device=self.device)
        for _ in range(self.num_calls):
            state, output = self.advance(state, step, ids, seed)
        return state.moved.x, output

    def start(self, x: Tensor, y: Tensor) -> State:
        """The state before the first step.  x, y: standard normal, fp32."""
        return State(DdimStep(x, y, x.to(self.dtype), y.to(self.dtype)))

    def advance(self, state: State, step: Tensor, ids: Tensor | None, seed: int) -> tuple[State, Tensor]:
        """One call of the net: the next state and the label branch's output; moves the step counter."""
        (x, y, x_input, y_input), before = state
        if self._tabulate_time:
            x_hat, output = self.net.denoise(x_input, y_input, self._shifts[len(x)].row(step))
        else:
            x_hat, output = self.net(x_input, y_input, self._timesteps[step].expand(len(x)))
        if self._factors is not None:
            x_hat = clean_image(x_hat, x, self._factors[step])
        if before is None and self._looks_back:
            before = torch.zeros_like(x_hat), torch.zeros_like(output)  # the first step's C is 0
        x_before, output_before = before or (None, None)
        moved = ddim_step(
            x,
            y,
            x_hat,
            output,
            self._coefficients,
            step,
            x0_before=x_before,
            logits_before=output_before,
            b=self.b,
            clip=self.clip,
            label_update=self.reading.label_update,
            stochastic=self.eta > 0,
            seed=seed,
            sample_ids=ids,
            input_dtype=self.dtype,
        )
        step.add_(1)
        return State(moved, (x_hat, output) if self._looks_back else None), output

    def _replay(self, x: Tensor, y: Tensor, ids: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
        # The seed is a constant of the captured launches; the ids are a tensor, which each call overwrites.
        key = (x.shape, y.shape, ids is None, seed if self.eta > 0 else None)
        if self._captured is None or self._captured[0] != key:
            self._captured = None  # frees the old graph's memory before the new graph takes its own
            self._captured = key, CapturedStep(self, x, y, ids, seed)
        return self._captured[1].run(x, y, ids, self.num_calls)


class ShiftTable:
    """A net's tensors of each timestep: one row per timestep, or a batch of rows.

    Computed on batches of the size that it is used for: a product of one row may be summed in another order than the
    same row among others, and the table must hold the numbers of the loop. Some CPU libraries sum the last rows of
    an odd batch in another order than the first ones; the table then keeps the whole batch.
    """

    def __init__(self, net: TimedDenoiser, timesteps: Tensor, batch: int):
        rows = []
        for t in timesteps.unbind():
            shifts = net.embed_time(t.expand(batch))
            rows.append(torch.cat(list(shifts), dim=1))
        table = torch.stack(rows)
        is_one_row_enough = bool((table == table[:, :1]).all())
        self._rows = table[:, :1].clone() if is_one_row_enough else table
        self._widths = [shift.shape[1] for shift in shifts]

    def row(self, step: Tensor) -> tuple[Tensor, ...]:
        """The tensors (1 or B, width) of one step.  step: int64 of one element, read on the device."""
        return self._rows[step].flatten(0, 1).split(self._widths, dim=1)


class CapturedStep:
    """One step of a sampler that reads and writes the same memory at every replay.

    A CUDA graph replays its launches with the addresses of the capture. So the state, the ids and the counter are
    tensors of this object: a call copies its starts into them, and a step copies its result over the state it read.
    """

    def __init__(self, sampler: PairSampler, x: Tensor, y: Tensor, ids: Tensor | None, seed: int):
        self._ids = None if ids is None else ids.clone()
        self._step = torch.zeros(1, dtype=torch.int64, device=sampler.device)
        self._output = torch.empty(0, device=sampler.device)
        start = sampler.start(x.clone(), y.clone())
        # The dtypes and layouts of what a step hands to the next one are known after a step.
        after, _ = sampler.advance(start, self._step, self._ids, seed)
        before = None if after.before is None else tuple(torch.zeros_like(one) for one in after.before)
        self._state = State(start.moved, before)

        def advance() -> None:
            state, self._output = sampler.advance(self._state, self._step, self._ids, seed)
            self._write(state.moved, state.before)

        def rewind() -> None:
            self._step.zero_()

        self._replay_once = capture_graph(advance, rewind, sampler.device)

    def run(self, x: Tensor, y: Tensor, ids: Tensor | None, num_calls: int) -> tuple[Tensor, Tensor]:
        """The image and the label branch's last output after `num_calls` replays, in memory of their own."""
        # copy_ rounds x and y to the dtype of the net's inputs, as `start` does.
        self._write((x, y, x, y))
        for own in self._state.before or ():
            own.zero_()  # what the call before left there counts 0 times, which a NaN would survive
        if self._ids is not None:
            self._ids.copy_(ids)
        self._step.zero_()
        for _ in range(num_calls):
            self._replay_once()
        # Copies: the next call overwrites the memory of the graph.
        return self._state.moved.x.clone(), self._output.clone()

    def _write(self, moved: Sequence[Tensor], before: Sequence[Tensor] | None = None) -> None:
        for own, new in (*zip(self._state.moved, moved), *zip(self._state.before or (), before or ())):
            own.copy_(new)


def capture_graph(advance: Callable[[], None], rewind: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Captures `advance` and returns the function that replays it; `rewind` resets the counter before a warm-up call.

    RuntimeError with the remedy where the step cannot be captured.
    """
    with torch.cuda.device(device):
        # The warm-up compiles kernels and creates library handles, which a capture does not allow. It runs on a side
        # stream, as torch's documentation asks.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                rewind()
                advance()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # A capture records launches without running them; `run` sets the counter to 0 before the first replay.
            with torch.cuda.graph(graph):
                advance()
        except RuntimeError as error:
            raise RuntimeError(
                f"the sampling step could not be captured into a CUDA graph ({error}); set generate.capture=false"
            ) from error
    return graph.replay


def to_grey(image: Tensor) -> Tensor:
    """[-1, 1] to uint8 grey values, rounded; values outside are clamped."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

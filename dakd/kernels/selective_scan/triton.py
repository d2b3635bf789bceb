"""The scan in Triton: a thread owns a channel and walks through time with the channel's states in registers.

A program is one warp on 32 neighbouring channels of a sample. It loads tiles of 32 channels x a few steps, whole
sectors whichever of the two is contiguous, one tile ahead, and turns them so that each thread holds the steps of its
channel. With a_l = 2^(dt_l A log2 e), dt_l = softplus(delta_l + delta_bias) and b_l = dt_l u_l B_l:

Forward:   h_l = a_l h_{l-1} + b_l,  y_l = sum_n C_ln h_ln + D u_l
Backward:  g_l = dy_l C_l + G_{l+1},  G_l = a_l g_l,  z_l = G_l h_{l-1};
           p_l = sum_n g_l B_l;  du_l = p_l dt_l + D dy_l;  ddelta_l = (p_l u_l + sum_n z_l A) sigmoid(delta_l + bias);
           dB_l = sum_d g_l dt_l u_l;  dC_l = sum_d dy_l h_l;  dA = sum_{b,l} z_l dt_l;  dD = sum_{b,l} dy_l u_l;
           ddelta_bias = sum_{b,l} ddelta_l

The backward program walks through its time once, leaving in memory the states before every group of tiles, then walks
back: it recomputes the states before each tile of a group, and those within a tile in registers. Sums over channels are
made within the warp; those over channel blocks, samples and chunks in a second launch, in a fixed order and without
atomics.

A long sequence with too few channels to fill the device is cut into chunks. With S the sum of dt over a chunk, its
states end at 2^(S A log2 e) h_start + (what it makes from zero), and G goes back through it in the same way: one launch
finds what each chunk makes from zero, one carries states and G from chunk to chunk, and then all chunks run at once.
More states than fit into registers are scanned in groups, whose shares are added in fp32.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dakd.kernels import triton_runtime
from dakd.kernels.selective_scan import triton_kernels as kernels
from dakd.kernels.selective_scan.ops import Gradients, Operands
from dakd.kernels.selective_scan.triton_tiles import CHANNELS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# States whose operands a thread can hold in registers; more are scanned in groups.
_FORWARD_STATES = 16
_BACKWARD_STATES = 8
_BACKWARD_WIDTH = 4
# Distance of the states that the backward pass keeps, in pairs of steps; behind it the steps of a tile, and the tiles
# between kept states. Eight fp32 states take 16 / distance bytes a feature element, written and read once. 2 makes
# longer tiles, which take an eighth fewer instructions a step; 4 walks three tiles of four a third time, which takes a
# quarter more (longer tiles, walked so, spill on sm_90). All of these fit sm_90's registers, and should be fastest
# there in the order 2, 1, 4; only 1 fits those of sm_80 and sm_100 too, where 2 spills up to 56 bytes and 4 up to 24.
_BACKWARD_TILES = {1: (2, 1), 2: (4, 1), 4: (2, 4)}
CHECKPOINT_TILES = tuple(_BACKWARD_TILES)
_CHECKPOINT_TILES = 1
# Registers that ptxas may use in the backward pass. By default it stops at 128 and spills.
_BACKWARD_REGISTERS = 168
# Cutting costs two launches and the exponentials twice: not worth it for fewer steps, nor where programs abound.
_WHOLE_LENGTH = 256
_MIN_CHUNK = 32
_PROGRAMS_PER_MULTIPROCESSOR = 8
# Steps that a thread of the second stage sums, and parameters per program of it.
_SUM_STEPS = 64
_SUM_PARAMETERS = 32


def forward(operands: Operands, y: Tensor) -> None:
    groups = _state_groups(operands, _FORWARD_STATES)
    if len(groups) == 1:
        _forward(operands, y)
        return
    # In fp32: in a narrower y each group would add a rounding.
    share, total = (torch.empty_like(y, dtype=torch.float32) for _ in range(2))
    for index, group in enumerate(groups):
        _forward(group, share if index else total)
        if index:
            total += share
    y.copy_(total)


def backward(operands: Operands, dy: Tensor, gradients: Gradients) -> None:
    groups = _state_groups(operands, _BACKWARD_STATES)
    if len(groups) == 1:
        _backward(operands, dy, gradients)
        return
    # Every group has its own states' gradients, and a share of those of the sequences and the bias.
    added = (gradients.du, gradients.ddelta, gradients.ddelta_bias)
    totals = [torch.empty_like(tensor, dtype=torch.float32) for tensor in added]
    states = [tensor.split(_BACKWARD_STATES, dim=1) for tensor in (gradients.dA, gradients.dB, gradients.dC)]
    for index, (group, dA, dB, dC) in enumerate(zip(groups, *states, strict=True)):
        shares = [torch.empty_like(total) for total in totals] if index else totals
        _backward(group, dy, Gradients(shares[0], shares[1], dA, dB, dC, gradients.dD, shares[2]))
        if index:
            for total, share in zip(totals, shares):
                total += share
    for tensor, total in zip(added, totals):
        tensor.copy_(total)


def _forward(operands: Operands, y: Tensor) -> None:
    """The forward pass for at most _FORWARD_STATES states; y may be wider than u."""
    u, delta, A, _, _, D, _, _ = operands
    batch, num_channels, length = u.shape
    chunk_length, num_chunks, num_blocks = _chunks(u)
    # One axis, because the other two of a CUDA grid end at 65,535.
    grid = (batch * num_chunks * num_blocks,)
    sequences = (u, delta, y)
    steps = _forward_steps(sequences, A)
    constants = _constants(steps, 32 // steps, sequences, operands)
    sizes = (num_channels, length, num_blocks, num_chunks, chunk_length)
    tensors, strides = _tensors(operands), _strides(operands)
    starts = u.new_empty(0, dtype=torch.float32)
    if num_chunks > 1:
        starts, _ = _chunk_borders(tensors, u, sizes, strides, (0, 0, 0), constants, backward=False)
    arguments = (*tensors, starts, y, *sizes, *strides, *y.stride())
    triton_runtime.launch(
        kernels.forward_kernel,
        grid,
        *arguments,
        num_warps=1,
        num_stages=1,
        HAS_STARTS=num_chunks > 1,
        HAS_SKIP=D is not None,
        **constants,
    )


def _backward(operands: Operands, dy: Tensor, gradients: Gradients) -> None:
    """The backward pass for at most _BACKWARD_STATES states; du, ddelta, ddelta_bias may be wider than u."""
    u, delta, A, _, _, D, delta_bias, _ = operands
    du, ddelta, dA, dB, dC, dD, dbias = gradients
    num_steps, num_tiles = _BACKWARD_TILES[_CHECKPOINT_TILES]
    if not all(_has_aligned_rows(tensor, num_steps) for tensor in (u, delta, dy, du, ddelta)):
        # Addresses of odd rows and the states would not both fit into registers: turn the rows instead.
        u, delta, dy, du, ddelta = (_channels_innermost(tensor) for tensor in (u, delta, dy, du, ddelta))
        operands = operands._replace(u=u, delta=delta)
    batch, num_channels, length = u.shape
    num_states = A.shape[1]
    chunk_length, num_chunks, num_blocks = _chunks(u)
    sequences = (u, delta, dy, du, ddelta)
    constants = _constants(num_steps, _BACKWARD_WIDTH, sequences, operands)
    sizes = (num_channels, length, num_blocks, num_chunks, chunk_length)
    tensors, strides = _tensors(operands), _strides(operands)
    starts = ends = u.new_empty(0, dtype=torch.float32)
    if num_chunks > 1:
        starts, ends = _chunk_borders(tensors, dy, sizes, strides, dy.stride(), constants, backward=True)
    num_programs = batch * num_chunks * num_blocks
    # A row of decays, one of states for each tile but the first between two kept ones, and the kept ones.
    num_rows = num_programs * (num_tiles + triton.cdiv(chunk_length, num_tiles * num_steps))
    width = constants["WIDTH"]
    states = u.new_empty((num_rows, triton.cdiv(num_states, width), CHANNELS, width), dtype=torch.float32)
    # Partial sums that the second launch adds in a fixed order: without atomics, every run has the same bits.
    shares = u.new_empty((num_blocks, batch, 2, num_states, length), dtype=torch.float32)
    sums = u.new_empty((batch * num_chunks, num_blocks, num_states + 2, CHANNELS), dtype=torch.float32)
    # Whether there is a D is not compiled in: without one, ptxas took fewer registers than sm_90 needs, and spilled.
    num_skipping = 0 if D is None else num_channels
    arguments = (*tensors, dy, starts, ends, states, du, ddelta, shares, sums, num_skipping, *sizes, *strides)
    triton_runtime.launch(
        kernels.backward_kernel,
        (num_programs,),
        *arguments,
        *dy.stride(),
        *du.stride(),
        *ddelta.stride(),
        num_warps=1,
        num_stages=1,
        maxnreg=_BACKWARD_REGISTERS,
        IS_CHUNKED=num_chunks > 1,
        TILES=num_tiles,
        **constants,
    )
    num_step_blocks = triton.cdiv(length, _SUM_STEPS)
    num_sequence_programs = batch * 2 * num_step_blocks
    num_parameters = num_blocks * (num_states + 2) * CHANNELS
    triton_runtime.launch(
        kernels.sum_kernel,
        (num_sequence_programs + triton.cdiv(num_parameters, _SUM_PARAMETERS),),
        shares,
        sums,
        dB,
        dC,
        dA,
        dA if D is None else dD,
        dA if delta_bias is None else dbias,
        num_channels,
        length,
        num_blocks,
        batch * num_chunks,
        num_step_blocks,
        num_sequence_programs,
        shares.stride(0),
        *dB.stride(),
        *dC.stride(),
        *dA.stride(),
        1 if D is None else dD.stride(0),
        1 if delta_bias is None else dbias.stride(0),
        num_warps=4,
        num_stages=1,
        N=num_states,
        PADDED_N=triton.next_power_of_2(num_states),
        STEPS=_SUM_STEPS,
        PARAMETERS=_SUM_PARAMETERS,
        HAS_SKIP=D is not None,
        HAS_BIAS=delta_bias is not None,
    )
    for output, written in zip((gradients.du, gradients.ddelta), (du, ddelta)):
        if written is not output:
            output.copy_(written)


def _channels_innermost(tensor: Tensor) -> Tensor:
    """`tensor` itself where dimension 1 of (B, D, L) is contiguous, else a copy that has it so."""
    return tensor if tensor.stride(1) == 1 else tensor.mT.contiguous().mT


def _chunk_borders(
    tensors: tuple, dy: Tensor, sizes: tuple, strides: tuple, dy_strides: tuple, constants: dict, *, backward: bool
) -> tuple[Tensor, Tensor]:
    """The states before each chunk and, for the backward pass, G after it: (programs, N, 32) fp32 each."""
    u, A = tensors[0], tensors[2]
    num_channels, _, num_blocks, num_chunks, _ = sizes
    num_programs, num_states = u.shape[0] * num_blocks * num_chunks, A.shape[1]
    starts = u.new_empty((num_programs, num_states, CHANNELS), dtype=torch.float32)
    ends = torch.empty_like(starts) if backward else starts
    totals = u.new_empty((num_programs, CHANNELS), dtype=torch.float32)
    triton_runtime.launch(
        kernels.chunk_kernel,
        (num_programs,),
        *tensors,
        dy,
        starts,
        ends,
        totals,
        *sizes,
        *strides,
        *dy_strides,
        num_warps=1,
        num_stages=1,
        IS_BACKWARD=backward,
        **constants,
    )
    triton_runtime.launch(
        kernels.carry_kernel,
        (u.shape[0] * num_blocks * num_states,),
        A,
        starts,
        ends,
        totals,
        num_channels,
        num_blocks,
        num_chunks,
        *A.stride(),
        num_warps=1,
        num_stages=1,
        N=num_states,
        IS_BACKWARD=backward,
    )
    return starts, ends


def _chunks(u: Tensor) -> tuple[int, int, int]:
    """Steps of a chunk, the number of chunks, and the number of channel blocks."""
    batch, num_channels, length = u.shape
    num_blocks = triton.cdiv(num_channels, CHANNELS)
    programs = max(1, batch * num_blocks)
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * triton_runtime.num_multiprocessors(u.device)
    if length <= _WHOLE_LENGTH or 2 * programs > wanted:
        return max(1, length), 1, num_blocks
    num_chunks = min(triton.cdiv(wanted, programs), triton.cdiv(length, _MIN_CHUNK))
    # A multiple of every tile's length, so that only the last tile of all is cut.
    chunk_length = 8 * triton.cdiv(triton.cdiv(length, num_chunks), 8)
    return chunk_length, triton.cdiv(length, chunk_length), num_blocks


def _state_groups(operands: Operands, size: int) -> list[Operands]:
    """The operands of every `size` states, or fewer in the last group; at least one group. D is the first one's."""
    num_states = operands.A.shape[1]
    if num_states <= size:
        return [operands]
    states = zip(*(tensor.split(size, dim=1) for tensor in (operands.A, operands.B, operands.C)))
    return [
        operands._replace(A=A, B=B, C=C, D=None if index else operands.D) for index, (A, B, C) in enumerate(states)
    ]


def _constants(num_steps: int, width: int, sequences: tuple[Tensor, ...], operands: Operands) -> dict:
    """The constants of all kernels over time.

    num_steps: steps of a tile.  width: states whose B and C are turned, and held in registers, at once.
    sequences: all (B, D, L) that are read and written.
    """
    num_states = operands.A.shape[1]
    width = min(width, triton.next_power_of_2(max(1, num_states)))
    return dict(
        N=num_states,
        WIDTH=width,
        # A tile of fewer elements than threads would be loaded by every thread: harmless only for few states.
        ROWS=32 // width if num_states >= 4 else num_steps,
        K=num_steps,
        ALIGNED=num_steps if all(_has_aligned_rows(tensor, num_steps) for tensor in sequences) else 1,
        HAS_BIAS=operands.delta_bias is not None,
        SOFTPLUS=operands.delta_softplus,
    )


def _forward_steps(sequences: tuple[Tensor, ...], A: Tensor) -> int:
    """Steps of a forward tile: 8, for 16-byte loads of two-byte features, where registers allow and few are wasted."""
    u = sequences[0]
    fits = u.element_size() == 2 and A.shape[1] <= 8 and u.shape[2] >= 128
    wide = all(tensor.stride(1) == 1 for tensor in sequences) or all(_has_aligned_rows(x, 8) for x in sequences)
    return 8 if fits and wide else 4


def _has_aligned_rows(tensor: Tensor, num_steps: int) -> bool:
    """Whether L is contiguous and cut into whole tiles, so that a thread loads its channel's tile at once."""
    sizes = (tensor.shape[2], tensor.stride(0), tensor.stride(1))
    return tensor.stride(2) == 1 and all(size % num_steps == 0 for size in sizes)


def _tensors(operands: Operands) -> tuple[Tensor, ...]:
    """The kernels' first arguments; A stands in for D and delta_bias where they are not given."""
    u, delta, A, B, C, D, delta_bias, _ = operands
    return u, delta, A, B, C, A if D is None else D, A if delta_bias is None else delta_bias


def _strides(operands: Operands) -> tuple[int, ...]:
    """In elements: three each of u, delta, B, C; two of A; one each of D and delta_bias."""
    u, delta, A, B, C, D, delta_bias, _ = operands
    vectors = (1 if tensor is None else tensor.stride(0) for tensor in (D, delta_bias))
    return *u.stride(), *delta.stride(), *A.stride(), *B.stride(), *C.stride(), *vectors

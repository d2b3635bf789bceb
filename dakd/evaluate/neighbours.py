"""Nearest neighbours of images: windows, their descriptions, and the search among very many of them, in chunks.

Windows are compared in three ways.

- Features, by their Euclidean distance: finds images that look alike without lying pixel on pixel.
- Means of large blocks, by their correlation with those of every window of every image, in steps of a block: finds the
  same layout, also at another brightness and contrast.
- Where the blocks agree best, means of a few pixels, by their correlation over all shifts of up to a block: only a copy
  repeats the grain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dakd.data.shards import ShardSet
from dakd.data.transforms import pad, to_student
from dakd.models.student import COARSEST_STRIDE, pad_to_multiple
from dakd.weights import load_student

# Euclidean distance of features; 1 - correlation of means of large blocks, and of means of a few pixels.
MEASURES = ("features", "blocks", "grain")
# The ways in which a sample may be mirrored, as dimensions of (B, H, W).
FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))
FLIP_NAMES = ("none", "up-down", "left-right", "both")

_BATCH = 64
_QUERY_BLOCK = 4096
_CHUNK = 1024  # references at once; with a block of queries 16 MiB of scores
_GRIDS = (1, 2, 4)
_NUM_ORIENTATIONS = 4
GRAINS = 4  # of a block's side make the smaller means
_FLAT = 0.5  # grey values: block means that deviate less from their mean are a plain surface

FeatureFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Window:
    """A part of an image; all windows of a search have one size.  image: index in its set.  top, left: pixels."""

    image: int
    top: int
    left: int


@dataclass(frozen=True)
class Described:
    """N windows by their descriptions, float32: features and normalised block means (flips, N, D), grain (N, h, w)."""

    features: Tensor
    blocks: Tensor
    grain: Tensor


@dataclass(frozen=True)
class Nearest:
    """The best reference of each query, once for each of its flips, (flips, N): score float32, reference int64."""

    score: Tensor
    reference: Tensor


@dataclass(frozen=True)
class Neighbours:
    """The nearest training windows of N windows by one of MEASURES.

    distances: (N,) float64.  windows: of the training images.  flips: (N,) indices of FLIPS, mirrorings of the queries.
    """

    distances: np.ndarray
    windows: list[Window]
    flips: np.ndarray

    def part(self, some: slice) -> Neighbours:
        return Neighbours(self.distances[some], self.windows[some], self.flips[some])


def grey_gradient_pyramid(images: Tensor) -> Tensor:
    """Statistics of greys and gradients on grids of 1, 2 and 4 cells a side: (B, H, W) uint8 to (B, 126) float32.

    Of each cell: the mean grey, the mean distance from the image's mean grey, and the mean length of the gradients in
    each of four orientations. It is cheap and needs no training.
    """
    greys = images.to(torch.float32) / 255
    padded = F.pad(greys[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down, right = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1], padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    length = torch.hypot(down, right)
    # Of lines, not of arrows: an angle and its opposite are one orientation.
    angle = torch.atan2(down, right).remainder(torch.pi) * (_NUM_ORIENTATIONS / torch.pi)
    orientation = angle.round().long() % _NUM_ORIENTATIONS
    maps = [greys, (greys - greys.mean(dim=(1, 2), keepdim=True)).abs()]
    maps += [length * (orientation == number) for number in range(_NUM_ORIENTATIONS)]
    stacked = torch.stack(maps, dim=1)
    return torch.cat([F.adaptive_avg_pool2d(stacked, grid).flatten(1) for grid in _GRIDS], dim=1)


def student_encoder(path: str | Path, device: torch.device) -> FeatureFunction:
    """A student's encoder: (B, H, W) uint8 to the spatial means of its four maps, (B, sum of channels) float32."""
    net, _ = load_student(path, device)

    @torch.inference_mode()
    def extract(images: Tensor) -> Tensor:
        maps = net.encode(pad_to_multiple(to_student(images.to(device)[:, None]), COARSEST_STRIDE))
        return torch.cat([one.float().mean(dim=(2, 3)) for one in maps], dim=1).cpu()

    return extract


def windows_of(shards: ShardSet, size: tuple[int, int]) -> list[Window]:
    """Windows of (h, w) pixels in steps of half their sides, and at the far edges; a smaller image has one window."""
    return [
        Window(image, top, left)
        for image in range(len(shards))
        for top, left in itertools.product(*map(_starts, shards.size(image), size))
    ]


def evenly(items: Sequence, most: int) -> list:
    """At most so many of the items, evenly spaced."""
    count = min(len(items), most)
    return [items[place * len(items) // count] for place in range(count)]


def batches(images: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Images of one size, a few dozen at a time: (B, h, w) uint8."""
    waiting = iter(images)
    while batch := list(itertools.islice(waiting, _BATCH)):
        yield torch.as_tensor(np.stack(batch))


def describe(images: Iterable[np.ndarray], extract: FeatureFunction, cells: int) -> Described:
    """The descriptions of images (h, w) uint8 of one size."""
    features, blocks, grain = [], [], []
    for batch in batches(images):
        flipped = [batch.flip(flip) if flip else batch for flip in FLIPS]
        features.append(torch.stack([extract(one) for one in flipped]))
        blocks.append(torch.stack([normalised(block_means(one, cells).flatten(1)) for one in flipped]))
        grain.append(block_means(batch, GRAINS * cells))
    return Described(torch.cat(features, dim=1), torch.cat(blocks, dim=1), torch.cat(grain))


def read_windows(shards: ShardSet, windows: Sequence[Window], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The grey values (h, w) of windows that are sorted by image; an image that is smaller is padded by reflection."""
    for image, group in itertools.groupby(windows, key=lambda window: window.image):
        sar = pad(shards.read(image), size).sar
        for window in group:
            yield sar[window.top : window.top + size[0], window.left : window.left + size[1]]


def block_means(images: Tensor, cells: int, size: tuple[int, int] | None = None) -> Tensor:
    """Means of the whole cells of images (B, H, W) uint8: (B, rows, columns) float32, grey values.

    `cells` of them, or as many as there are pixels, make a side of a window of `size`, by default the image.
    """
    cell = cell_size(size or tuple(images.shape[-2:]), cells)
    return F.avg_pool2d(images[:, None].to(torch.float32), cell)[:, 0]


def cell_size(size: tuple[int, int], cells: int) -> tuple[int, int]:
    """Pixels of a cell, (height, width); the rest of a window, beyond whole cells, is left out."""
    return tuple(side // min(cells, side) for side in size)


def sliding_windows(
    shards: ShardSet, size: tuple[int, int], cells: int, images: Iterable[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every window of every image at each cell of its grid, in chunks: places (R, 3) and normalised block means (R, D).

    A place is the image, and top and left in pixels.
    """
    cell = cell_size(size, cells)
    rows, columns = (side // one for side, one in zip(size, cell))
    places: list[Tensor] = []
    blocks: list[Tensor] = []
    for image in images:
        sar = torch.tensor(pad(shards.read(image), size).sar)[None]
        windows = block_means(sar, cells, size)[0].unfold(0, rows, 1).unfold(1, columns, 1)
        tops, lefts = (torch.arange(count) * one for count, one in zip(windows.shape[:2], cell))
        places.append(torch.cartesian_prod(torch.tensor([image]), tops, lefts))
        blocks.append(normalised(windows.reshape(len(places[-1]), rows * columns)))
        if sum(map(len, places)) >= _CHUNK:
            yield torch.cat(places), torch.cat(blocks)
            places, blocks = [], []
    if places:
        yield torch.cat(places), torch.cat(blocks)


def normalised(blocks: Tensor) -> Tensor:
    """(N, D) of mean 0 and norm 1; 0 where a window is a plain surface, which correlates with nothing."""
    centred = blocks - blocks.mean(dim=1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    return torch.where(norm > _FLAT * blocks.shape[1] ** 0.5, centred / norm.clamp_min(1e-12), 0.0)


def most_similar(
    queries: Tensor, owners: Tensor, chunks: Iterable[tuple[Tensor, Tensor]], is_euclidean: bool = False
) -> Nearest:
    """The reference with the largest product for each flip of each query.

    queries: (flips, N, D).  owners: (N,) the image that a query is from where references are of the same set, else -1;
    references from that image do not count.  chunks: vectors (R, D) and their owners (R,).
    is_euclidean: score by q r - |r|^2 / 2, which is largest for the smallest |q - r|, in place of the product.
    A query without any reference keeps the score -inf.
    """
    num_flips, num, _ = queries.shape
    score = torch.full((num_flips, num), -torch.inf)
    reference = torch.zeros((num_flips, num), dtype=torch.int64)
    first = 0
    for vectors, their_owners in chunks:
        squares = vectors.square().sum(dim=1) / 2 if is_euclidean else 0.0
        for start in range(0, num, _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            own = owners[block, None] == their_owners
            for flip in range(num_flips):
                products = queries[flip, block] @ vectors.T - squares
                # Windows of the query's own image would always be the nearest.
                values, places = products.masked_fill_(own, -torch.inf).max(dim=1)
                better = values > score[flip, block]
                score[flip, block] = torch.where(better, values, score[flip, block])
                reference[flip, block] = torch.where(better, places + first, reference[flip, block])
        first += len(vectors)
    return Nearest(score, reference)


def nearest_features(
    queries: Tensor, owners: Tensor, references: Tensor, their_owners: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The least Euclidean distance of queries (flips, N, D) to references (R, D), its reference and flip; (N,) each."""
    chunks = zip(references.split(_CHUNK), their_owners.split(_CHUNK))
    found = most_similar(queries, owners, chunks, is_euclidean=True)
    # From the vectors themselves: of near copies the expanded square has no digit left.
    distances = torch.stack([(q - references[at]).norm(dim=1) for q, at in zip(queries, found.reference)])
    least, flip = distances.min(dim=0)
    return least, found.reference.gather(0, flip[None])[0], flip


def compare_grain(
    shards: ShardSet, size: tuple[int, int], cells: int, grain: Tensor, places: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best correlation of queries' grain (N, h, w) near a place of each flip (flips, N, 3), over shifts by a block.

    Returns the correlation (N,), its place (N, 3) and flip (N,).
    """
    reach, fine = cell_size(size, cells), cell_size(size, GRAINS * cells)
    score = torch.full(places.shape[:2], -torch.inf)
    best = places.clone()
    for image in places[..., 0].unique().tolist():
        sar = torch.tensor(pad(shards.read(image), size).sar)
        for flip, query in (places[..., 0] == image).nonzero().tolist():
            _, top, left = places[flip, query].tolist()
            bottom, right = top + size[0] + reach[0], left + size[1] + reach[1]
            top, left = max(0, top - reach[0]), max(0, left - reach[1])
            region = block_means(sar[None, top:bottom, left:right], GRAINS * cells, size)[0]
            windows = region.unfold(0, grain.shape[1], 1).unfold(1, grain.shape[2], 1)
            template = grain[query].flip([axis - 1 for axis in FLIPS[flip]])
            found = normalised(windows.flatten(2).flatten(0, 1)) @ normalised(template.flatten()[None])[0]
            at = int(found.argmax())
            down, across = divmod(at, windows.shape[1])
            score[flip, query] = found[at]
            best[flip, query, 1:] = torch.tensor([top + down * fine[0], left + across * fine[1]])
    most, flip = score.max(dim=0)
    return most, best[flip, torch.arange(len(flip))], flip


def _starts(side: int, window: int) -> list[int]:
    last = max(0, side - window)
    return [*range(0, last, max(1, window // 2)), last]

"""The simulated dataset: SAR scenes of sea, slicks, look-alikes, ships and land under multiplicative speckle.

A scene is built as backscatter in dB, as the radar would see it: wind-roughened sea with swell and an incidence
gradient; oil damps it in thin winding bands and patches with crisp edges, look-alikes (low wind, natural films) in
broad weak areas with soft ones; land is bright with relief; ships are strong scatterers with side lobes along range and
azimuth. Then come the noise floor, gamma-distributed multi-look speckle with the slight correlation of an oversampled
image, and the linear mapping of dB to grey values. Every shape is cut from a random field at the area that it should
have, so the class shares are those of the configuration at any size. One scene is a pure function of (seed, index).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dakd.config import SimulationConfig
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.runtime.seeding import Stream, numpy_rng

SEA, OIL, LOOK_ALIKE, SHIP, LAND = range(OSD_CLASSES.num_classes)

# How often a scene holds a class at all; its mean area there is the class share over this.
_OIL_PRESENCE, _LOOK_ALIKE_PRESENCE, _LAND_PRESENCE = 0.6, 0.4, 0.3
_MAX_MEAN_AREA = 0.5  # of a scene; a class with a greater share is present more often instead
# Steps of the three-dimensional additive recurrence of least discrepancy: powers of the root of x^4 = x + 1.
_R3 = 1.2207440846057596 ** -np.arange(1.0, 4.0)
# By how much a slick, or a look-alike, damps the backscatter of the sea: drawn per object from this range, in dB.
_OIL_DAMPING_DB, _LOOK_ALIKE_DAMPING_DB = (6.0, 11.0), (2.0, 4.5)
NOISE_FLOOR_DB = -13.0  # below the mean sea
# Greys per dB, and the grey of a sea of 0 dB: at least, and by how much more at most.
_LEVELS_PER_DB, _SEA_LEVEL, _BRIGHTER = (8.0, 11.0), 46, 130
_BRIGHTNESS = (0.7, 2.0)  # of the beta distribution between them
# What a student of these scenes can be shown: backscatter and spacing at which a scene looks like the average of them.
SEA_DB = -18.0  # sigma0, VV, of a moderate wind at the middle of an IW swath
PIXEL_SPACING_M = 40.0  # ships of 3 to 6 pixels
_MEAN_LEVELS_PER_DB = sum(_LEVELS_PER_DB) / 2
_MEAN_SEA_LEVEL = _SEA_LEVEL + _BRIGHTER * _BRIGHTNESS[0] / sum(_BRIGHTNESS)
WINDOW_DB = (SEA_DB - _MEAN_SEA_LEVEL / _MEAN_LEVELS_PER_DB, SEA_DB + (255 - _MEAN_SEA_LEVEL) / _MEAN_LEVELS_PER_DB)
_SPECKLE_TAP = 0.12  # weight of each neighbour in the speckle's point spread, per axis


def simulate(index: int, cfg: SimulationConfig, seed: int) -> Sample:
    """Scene number `index` >= 0 of a seed: image and label (H, W) uint8 of cfg.size, classes as in OSD_CLASSES."""
    rng = numpy_rng(seed, index, stream=Stream.SIMULATE)
    shape = tuple(cfg.size)
    label = np.zeros(shape, np.uint8)
    land_area, oil_area, look_alike_area = _areas(index, cfg, seed)
    db = _sea(rng, shape)
    land_db = _add_land(rng, label, land_area)
    # Film on a calm sea changes little: where both damp the waves, the stronger counts.
    db -= np.maximum(add_oil(rng, label, oil_area), add_look_alike(rng, label, look_alike_area))
    db = np.where(label == LAND, land_db, db)
    intensity = 10 ** (db / 10) + 10 ** (NOISE_FLOOR_DB / 10)
    intensity += _add_ships(rng, label, cfg)
    intensity *= speckle(rng, shape, cfg.looks)
    meta = {"source": "simulated", "seed": seed, "index": index, "looks": cfg.looks}
    return Sample(key=f"sim-{index:08d}", sar=_to_grey(rng, intensity), label=label, meta=meta)


# --- the image --------------------------------------------------------------------------------------------------------


def speckle(rng: np.random.Generator, shape: tuple[int, int], looks: float) -> np.ndarray:
    """(H, W) factors of mean 1 and variance 1 / looks: gamma noise through the point spread of an oversampled image."""
    taps = np.array([_SPECKLE_TAP, 1 - 2 * _SPECKLE_TAP, _SPECKLE_TAP])
    # Averaging independent looks multiplies their number by 1 / sum(taps^2) per axis, so that many fewer are drawn.
    drawn_looks = looks * np.sum(taps**2) ** 2
    height, width = shape
    noise = rng.gamma(drawn_looks, 1 / drawn_looks, (height + 2, width + 2))
    noise = taps[0] * (noise[:-2] + noise[2:]) + taps[1] * noise[1:-1]
    return taps[0] * (noise[:, :-2] + noise[:, 2:]) + taps[1] * noise[:, 1:-1]


def _to_grey(rng: np.random.Generator, intensity: np.ndarray) -> np.ndarray:
    """dB to grey values linearly, with the brightness and gain of a scene; 0 and 255 saturate."""
    sea_level = _SEA_LEVEL + _BRIGHTER * rng.beta(*_BRIGHTNESS)
    levels_per_db = rng.uniform(*_LEVELS_PER_DB)
    grey = sea_level + levels_per_db * 10 * np.log10(np.maximum(intensity, 1e-6))
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)


def _sea(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """dB of the open sea, mean about 0: wind, gusts, streaks along the wind, and the fall-off with incidence angle."""
    wind, gusts = noise_pair(rng, shape, slope=3.2)
    ripples, _ = noise_pair(rng, shape, slope=1.4)
    streaks = _streaks(rng, shape)
    across = np.linspace(-0.5, 0.5, shape[1]) * rng.choice([-1, 1]) * rng.uniform(0.5, 4.5)
    return (
        rng.uniform(0.4, 1.1) * wind
        + rng.uniform(0.1, 0.4) * gusts * np.tanh(wind)
        + rng.uniform(0.2, 0.5) * ripples
        + rng.uniform(0.0, 0.7) * streaks * (1 + 0.5 * gusts)
        + across[None, :]
    )


def _streaks(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Unit-variance bands along a random direction: wind rows or swell, a few to a dozen across the scene."""
    angle = rng.uniform(0, np.pi)
    ky, kx = _wave_numbers(shape)
    along, across = kx * np.cos(angle) + ky * np.sin(angle), ky * np.cos(angle) - kx * np.sin(angle)
    centre = rng.uniform(4, 12)
    amplitude = np.exp(-((along / 2.5) ** 2) - ((np.abs(across) - centre) / (0.6 * centre)) ** 2)
    return _unit(_field(rng, shape, amplitude).real)


def add_look_alike(rng: np.random.Generator, label: np.ndarray, area: float, rim: float = 0.0) -> np.ndarray:
    """Labels broad areas of low wind and gives their damping in dB: smooth outline, weak, fading over a wide margin.

    rim: see `add_oil`.
    """
    shape = label.shape
    if not area:
        return np.zeros(shape)
    u, v = _stretched_coordinates(rng, shape, warp=0.12)
    bumps, variation = noise_pair(rng, shape, slope=4.2)
    half_length, half_width = rng.uniform(0.35, 0.9), rng.uniform(0.12, 0.35)
    form = 0.45 * bumps - np.sqrt((u / half_length) ** 2 + (v / half_width) ** 2)
    mask = _cut(form - _repelled(shape, rim), label == SEA, area)
    label[mask] = LOOK_ALIKE
    damping = rng.uniform(*_LOOK_ALIKE_DAMPING_DB) * (1 + 0.12 * variation)
    return damping * blur(mask, rng.uniform(0.015, 0.035) * min(shape))


def add_oil(rng: np.random.Generator, label: np.ndarray, area: float, rim: float = 0.0) -> np.ndarray:
    """Labels a slick and gives its damping in dB: one to three winding bands, or a patch with a ragged rim.

    Thicker and thinner film makes the damping vary inside; a thin sheen may trail off on the lee side.
    rim: share of the window's side, from each edge, that the slick keeps away from; 0 lets it run out of the window.
    """
    shape = label.shape
    if not area:
        return np.zeros(shape)
    if rng.random() < 0.75:
        form = _band(rng, shape)
        for _ in range(rng.integers(0, 3)):
            form = np.maximum(form, _band(rng, shape) - rng.uniform(0, 0.02))
    else:
        form = _patch(rng, shape)
    mask = _cut(form - _repelled(shape, rim), label == SEA, area)
    label[mask] = OIL
    film, _ = noise_pair(rng, shape, slope=2.5)
    damping = rng.uniform(*_OIL_DAMPING_DB) * np.clip(1 + 0.15 * film, 0.55, 1.3)
    edge = rng.uniform(0.25, 0.6) * (min(shape) / 64) ** 0.5
    drift = np.round(rng.uniform(-0.025, 0.025, 2) * min(shape)).astype(int)
    sheen = rng.uniform(0.0, 0.35) * blur(np.roll(mask, tuple(drift), (0, 1)), 3 * edge)
    return damping * np.maximum(blur(mask, edge), sheen)


def _add_land(rng: np.random.Generator, label: np.ndarray, area: float) -> np.ndarray:
    """Labels land that comes from one side with a fractal coast and islands; gives dB: bright, relief, scatterers."""
    shape = label.shape
    if not area:
        return np.zeros(shape)
    y, x = _coordinates(shape)
    coast, cover = noise_pair(rng, shape, slope=3.1)
    angle = rng.uniform(0, 2 * np.pi)
    inland = rng.uniform(2.0, 4.0) * (x * np.cos(angle) + y * np.sin(angle))
    mask = _cut(inland + rng.uniform(0.25, 0.55) * coast, np.ones(shape, bool), area)
    label[mask] = LAND
    height, towns = noise_pair(rng, shape, slope=3.6)
    # Slopes that face the radar are bright: the look direction is along the rows.
    relief = _unit(np.diff(height, axis=1, append=height[:, :1]))
    scatterers = (towns > 0.8) * rng.exponential(3.0, shape)
    return rng.uniform(7.0, 10.0) + 1.2 * cover + 1.8 * relief + scatterers


def _add_ships(rng: np.random.Generator, label: np.ndarray, cfg: SimulationConfig) -> np.ndarray:
    """(H, W) intensity of ships, added to the sea's: a bright hull and a cross of side lobes. Labels the hull."""
    height, width = label.shape
    unit = min(height, width) ** 0.5
    low, high = 0.4 * unit, 0.8 * unit  # length in pixels
    mean_area = np.pi / 4 * ((low + high) / 2) ** 2 * 0.42
    intensity = np.zeros(label.shape)
    y, x = np.mgrid[:height, :width]
    for _ in range(rng.poisson(cfg.ship_share * label.size / mean_area)):
        top, left = rng.uniform(0, height - 1), rng.uniform(0, width - 1)
        length, angle, peak = rng.uniform(low, high), rng.uniform(0, np.pi), 10 ** rng.uniform(1.5, 2.3)
        if label[round(top), round(left)] == LAND:
            continue
        dy, dx = y - top, x - left
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        distance = np.sqrt((2 * along / length) ** 2 + (2 * across / (0.42 * length)) ** 2)
        label[(distance <= 1) & (label != LAND)] = SHIP
        hull = np.exp(-(distance**4))
        intensity += peak * (hull + side_lobes(dx, dy, length) + side_lobes(dy, dx, length))
    return intensity


def side_lobes(along: np.ndarray, across: np.ndarray, length: float) -> np.ndarray:
    """Lobes of a point target along one axis of the image: falling with the square of the distance, one pixel wide."""
    scaled = np.abs(along) / (0.35 * length)
    return 0.35 * np.exp(-((across / 0.7) ** 2)) / (1 + scaled**2) * np.exp(-scaled / 6)


# --- shapes and fields ------------------------------------------------------------------------------------------------


def noise_pair(rng: np.random.Generator, shape: tuple[int, int], slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Two independent fields of mean 0 and variance 1 with the power spectrum k^-slope; periodic."""
    field = _field(rng, shape, _power_law(shape, slope))
    return _unit(field.real), _unit(field.imag)


def blur(mask: np.ndarray, sigma: float) -> np.ndarray:
    """A boolean (H, W) mask through a Gaussian of `sigma` pixels, 0 to 1, reflected at the borders."""
    radius = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    result = mask.astype(np.float64)
    for axis in (0, 1):
        edges = [(0, 0), (0, 0)]
        edges[axis] = (radius, radius)
        padded = np.pad(result, edges, mode="symmetric")
        size = result.shape[axis]
        parts = (tap * padded.take(range(i, i + size), axis=axis) for i, tap in enumerate(taps / taps.sum()))
        result = sum(parts)
    return result


def _repelled(shape: tuple[int, int], rim: float) -> np.ndarray | float:
    """(H, W): how much a form is lowered near the edges, so that none of it is cut there; 0 for no rim."""
    if not rim:
        return 0.0
    sides = [np.abs(np.arange(side) + 0.5 - side / 2) / side for side in shape]
    beyond = np.maximum(np.maximum(sides[0][:, None], sides[1][None, :]) - (0.5 - rim), 0)
    return 40 * beyond


def _band(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """High along a winding line of finite length whose width swells, thins and sometimes breaks."""
    u, v = _stretched_coordinates(rng, shape, warp=rng.uniform(0.05, 0.14))
    width, rim = noise_pair(rng, shape, slope=2.6)
    half_length = rng.uniform(0.25, 0.6)
    beyond = np.maximum(np.abs(u) - half_length, 0)
    return 0.012 * width + 0.004 * rim - np.hypot(v, beyond) - 0.03 * (u / half_length + 1) * rng.random()


def _patch(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """High inside a stretched blob with a ragged rim."""
    u, v = _stretched_coordinates(rng, shape, warp=0.05)
    rim, _ = noise_pair(rng, shape, slope=2.7)
    return 0.05 * rim - np.hypot(u * rng.uniform(0.4, 0.9), v)


def _stretched_coordinates(
    rng: np.random.Generator, shape: tuple[int, int], warp: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across a random direction through a random point, bent by smooth noise of size `warp`."""
    y, x = _coordinates(shape)
    bend_y, bend_x = noise_pair(rng, shape, slope=4.5)
    y = y - rng.uniform(-0.38, 0.38) + warp * bend_y
    x = x - rng.uniform(-0.38, 0.38) + warp * bend_x
    angle = rng.uniform(0, np.pi)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _areas(index: int, cfg: SimulationConfig, seed: int) -> list[float]:
    """Fractions of a scene that land, oil and look-alikes take; 0 where absent, and the shares of `cfg` on average.

    The scenes of a seed walk through a low-discrepancy sequence, so that the average holds over a few hundred already.
    """
    start = numpy_rng(seed, stream=Stream.SIMULATE).random(3)
    shares = (cfg.land_share, cfg.oil_share, cfg.look_alike_share)
    presences = (_LAND_PRESENCE, _OIL_PRESENCE, _LOOK_ALIKE_PRESENCE)
    areas = []
    for place, share, presence in zip((start + index * _R3) % 1.0, shares, presences):
        presence = max(presence, share / _MAX_MEAN_AREA)
        size = 0.4 + 1.2 * place / presence  # mean 1 where present
        areas.append(min(1.0, size * share / presence) if place < presence else 0.0)
    return areas


def _cut(form: np.ndarray, allowed: np.ndarray, area: float) -> np.ndarray:
    """The highest pixels of `form` among the allowed ones, `area` of the whole scene in number."""
    count = min(round(area * form.size), int(allowed.sum()))
    mask = np.zeros(form.size, bool)
    if count:
        ranked = np.where(allowed, form, -np.inf).ravel()
        mask[np.argpartition(ranked, -count)[-count:]] = True
    return mask.reshape(form.shape)


def _coordinates(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(H, 1) and (1, W): centred, in units of the shorter side."""
    height, width = shape
    unit = min(shape)
    return (np.arange(height)[:, None] - height / 2) / unit, (np.arange(width)[None, :] - width / 2) / unit


@lru_cache(maxsize=8)
def _wave_numbers(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(H, 1) and (1, W): cycles per shorter side."""
    unit = min(shape)
    return np.fft.fftfreq(shape[0])[:, None] * unit, np.fft.fftfreq(shape[1])[None, :] * unit


@lru_cache(maxsize=64)
def _power_law(shape: tuple[int, int], slope: float) -> np.ndarray:
    ky, kx = _wave_numbers(shape)
    k = np.hypot(ky, kx)
    k[0, 0] = np.inf  # no constant part
    return k ** (-slope / 2)


def _field(rng: np.random.Generator, shape: tuple[int, int], amplitude: np.ndarray) -> np.ndarray:
    """Complex Gaussian noise with the given spectral amplitude; its real and imaginary parts are independent."""
    white = rng.standard_normal((*shape, 2)).view(np.complex128)[..., 0]
    return np.fft.ifft2(white * amplitude)


def _unit(field: np.ndarray) -> np.ndarray:
    """Shifted and scaled to mean 0 and variance 1; a constant field becomes 0."""
    field = field - field.mean()
    return field / max(float(field.std()), 1e-12)

"""Small scenes with known content, and students whose answers are known, for the tests of `dakd.scene`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import dakd
from dakd.data.radiometry import Radiometry
from dakd.data.sample import OSD_CLASSES

# The greys at which the toy is surest of sea, oil, look-alike, ship, land.
GREYS = {"sea": 120, "oil": 20, "look-alike": 60, "ship": 250, "land": 190}
WINDOW = (-30.0, 0.0)  # dB of the toy's greys
UTM = "EPSG:32632"


class ByGrey(nn.Module):
    """The class whose grey is the nearest, pixel by pixel: no surroundings, so that any tiling gives the same."""

    num_classes = 5

    def forward(self, image: Tensor) -> Tensor:
        grey = 255 * (image[:, :1] * 0.229 + 0.485)
        centres = torch.tensor([GREYS[name] for name in OSD_CLASSES.names], dtype=torch.float32)
        return -0.01 * (grey - centres.view(1, -1, 1, 1)) ** 2


class Blurry(nn.Module):
    """Convolutions of a known reach: 8 pixels."""

    num_classes = 5
    reach = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 9, padding=4), nn.Tanh(), nn.Conv2d(8, 5, 9, padding=4))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def toy_student(net: nn.Module | None = None, spacing: float | None = None) -> dakd.Student:
    """A student of 64-pixel tiles whose file states the window WINDOW and a spacing."""
    radiometry = Radiometry("sigma0", WINDOW, spacing, (5.0, 120.0, 250.0), (20.0, 120.0, 200.0), (60.0, 180.0))
    facts = {"crop": [64, 64], "radiometry": radiometry.to_dict()}
    return dakd.Student(net or ByGrey(), OSD_CLASSES, "cpu", facts)


def db_of(grey: np.ndarray | float) -> np.ndarray:
    """The dB that the toy's window brings to a grey."""
    low, high = WINDOW
    return np.asarray(low + np.asarray(grey, np.float64) * (high - low) / 255)


def painted(label: np.ndarray) -> np.ndarray:
    """(H, W) float32 dB of a map of class ids, without speckle."""
    greys = np.array([GREYS[name] for name in OSD_CLASSES.names], np.float64)
    return db_of(greys[label]).astype(np.float32)


def write_tif(path: Path, array: np.ndarray, **settings: object) -> Path:
    """A GeoTIFF of (H, W) or (bands, H, W); settings: of rasterio, and gcps=(points, crs), descriptions, tags."""
    import rasterio

    bands = array if array.ndim == 3 else array[None]
    extra = {name: settings.pop(name) for name in ("gcps", "descriptions", "tags", "mask") if name in settings}
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2],
               "dtype": bands.dtype.name} | settings  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as made:
        made.write(bands)
        if "gcps" in extra:
            made.gcps = extra["gcps"]
        for number, text in enumerate(extra.get("descriptions", ()), start=1):
            made.set_band_description(number, text)
        made.update_tags(**extra.get("tags", {}))
        if "mask" in extra:
            made.write_mask(extra["mask"])
    return path


def utm(spacing: float = 40.0, x: float = 500_000.0, y: float = 4_650_000.0) -> dict[str, object]:
    """A CRS and a transform for `write_tif`."""
    import rasterio

    return {"crs": UTM, "transform": rasterio.Affine(spacing, 0, x, 0, -spacing, y)}

"""The rasters of a scene: class.tif and probability.tif as cloud-optimised GeoTIFFs.

The bands go into plain tiled GeoTIFFs in the work folder, from which polygons are measured too, and GDAL's COG driver
makes the final files of these, with overviews: the most frequent class, the mean probability.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from dakd.data.sample import ClassTable
from dakd.runtime.files import replacing, write_text
from dakd.scene.bad_scene import BadScene
from dakd.scene.bands import BandStore
from dakd.scene.engine import NO_DATA, PROBABILITY_STEPS, Band
from dakd.scene.georeference import Georeference
from dakd.scene.grey_scene import NO_LEVEL
from dakd.scene.packages import gdal_settings, need

_BLOCK = 512  # pixels
_SCRATCH = {"driver": "GTiff", "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "zstd",
            "zstd_level": 1, "bigtiff": "if_safer", "num_threads": "all_cpus", "interleave": "band"}  # fmt: skip
_COG = {"driver": "COG", "compress": "deflate", "level": 3, "predictor": "no", "blocksize": _BLOCK,
        "bigtiff": "if_safer", "num_threads": "all_cpus", "statistics": "no"}  # fmt: skip
_MOST_EDGES = 10_000_000  # between pixels of a row: the memory of outlines grows with them
LABEL, PROBABILITY, LEVEL, GREY, TRACED = "class.tif", "probability.tif", "level.tif", "grey.tif", "traced.tif"


@dataclass(frozen=True)
class Scratch:
    """The rasters of the work folder: class ids, probabilities a class, levels, greys, and the ids that are traced."""

    folder: Path

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """One of them to be read, as a dataset of rasterio."""
        with gdal_settings(), need("rasterio").open(self.folder / name) as found:
            yield found


def write_scratch(
    store: BandStore, top: int, place: Georeference, classes: ClassTable, least_pixels: Mapping[int, float]
) -> tuple[Scratch, np.ndarray, dict[int, int]]:
    """Bring the bands together.

    top: the result's first row on the scene's grid.  place: of the result.  least_pixels: of an outline, by the ids of
    the classes that are traced.
    Returns the rasters, (256,) the number of pixels of each id, and the number of outlines of each class that were
    found too small.
    """
    rasterio = need("rasterio")
    scratch, counts = Scratch(store.folder), np.zeros(256, np.int64)
    kinds = ((LABEL, 1, "uint8", NO_DATA), (PROBABILITY, classes.num_classes, "uint8", NO_DATA),
             (LEVEL, 1, "int16", int(NO_LEVEL)), (GREY, 1, "uint8", None), (TRACED, 1, "uint8", None))  # fmt: skip
    dropped, num_edges = dict.fromkeys(least_pixels, 0), 0
    with gdal_settings():
        files = []
        try:
            for name, count, dtype, nodata in kinds:
                profile = _SCRATCH | {"height": place.height, "width": place.width, "count": count, "dtype": dtype}
                one = rasterio.open(store.folder / name, "w", nodata=nodata, **profile)
                files.append(one)
                if name != TRACED:  # GDAL would trace it on the map, and pixels are wanted
                    set_place(one, place)
            _describe(files[0], files[1], classes)
            for start, bands in _several(store.all()):
                label, probability, level, grey = (
                    np.concatenate([getattr(band, name) for band in bands], axis=-2)
                    for name in ("label", "probability", "level", "grey")
                )
                counts += np.bincount(label.ravel(), minlength=256)
                traced = without_specks(label, least_pixels, dropped)
                num_edges += int(np.count_nonzero(traced[:, 1:] != traced[:, :-1]))
                if num_edges > _MOST_EDGES:
                    raise BadScene(
                        f"its classes change at more than {_MOST_EDGES:,} places, which is speckle, no outline; check "
                        "--unit and --window, or leave the polygons out: --outputs class,probability"
                    )
                window = rasterio.windows.Window(0, start - top, place.width, len(label))
                for one, array in zip(files, (label[None], probability, level[None], grey[None], traced[None])):
                    one.write(array, window=window)
        finally:
            for one in files:
                one.close()
    for name, *_ in kinds:
        check_whole(store.folder / name)
    return scratch, counts, dropped


def _several(bands: Iterator[Band]) -> Iterator[tuple[int, list[Band]]]:
    """(first row, bands) of at least a block's rows together."""
    held: list[Band] = []
    for band in bands:
        held.append(band)
        if band.bottom - held[0].top >= _BLOCK:
            yield held[0].top, held
            held = []
    if held:
        yield held[0].top, held


def without_specks(label: np.ndarray, least_pixels: Mapping[int, float], dropped: dict[int, int]) -> np.ndarray:
    """(h, W) uint8 class ids, 0 for classes that are not traced and for connected pixels fewer than the least.

    Those at the first and the last row stay: more of them may lie beyond. So the number of outlines does not grow with
    speckle.
    dropped: counts them by class.
    """
    ndimage, kept = need("scipy.ndimage"), np.zeros_like(label)
    for class_id, least in least_pixels.items():
        is_class = label == class_id
        if not is_class.any():
            continue
        parts, number = ndimage.label(is_class, structure=np.ones((3, 3), bool))
        stays = np.bincount(parts.ravel(), minlength=number + 1) >= least
        stays[np.concatenate([parts[0], parts[-1]])] = True
        dropped[class_id] += int(number - stays[1:].sum())
        stays[0] = False
        kept[stays[parts]] = class_id
    return kept


def set_place(dataset: Any, place: Georeference) -> None:
    """Write a georeference to an open dataset; none for one in pixels."""
    rasterio = need("rasterio")
    if place.crs is None:
        return
    crs = rasterio.crs.CRS.from_wkt(place.crs)
    if place.points:
        make = rasterio.control.GroundControlPoint
        # Longitudes as in the source: GDAL's readers expect -180 to 180.
        points = [make(one.row, one.column, (one.x + 180) % 360 - 180 if crs.is_geographic else one.x, one.y, one.z)
                  for one in place.points]  # fmt: skip
        dataset.gcps = (points, crs)
    else:
        dataset.crs, dataset.transform = crs, rasterio.Affine(*place.transform)


def _describe(label: Any, probability: Any, classes: ClassTable) -> None:
    table = classes.palette()
    colours = {i: (*table[i].tolist(), 255) for i in range(classes.num_classes)}
    label.write_colormap(1, colours | {NO_DATA: (0, 0, 0, 0)})
    label.set_band_description(1, "class")
    label.update_tags(1, **{f"CLASS_{i}": name for i, name in enumerate(classes.names)})
    for number, name in enumerate(classes.names, start=1):
        probability.set_band_description(number, name)
    probability.scales = [1 / PROBABILITY_STEPS] * classes.num_classes
    probability.offsets = [0.0] * classes.num_classes


def write_cog(source: Path, target: Path, overviews: str) -> None:
    """Write a raster of the work folder as a COG, whole or not at all.  overviews: GDAL's resampling, such as "mode".
    """
    shutil = need("rasterio.shutil")
    with replacing(target) as aside, gdal_settings():
        shutil.copy(source, aside, overview_resampling=overviews, **_COG)
        check_whole(aside)
        Path(f"{aside}.aux.xml").unlink(missing_ok=True)


def write_categories(target: Path, names: Sequence[str]) -> None:
    """The class names where GDAL looks for a raster's categories, TARGET.aux.xml: a TIFF has no place for them."""
    categories = "".join(f"      <Category>{escape(name)}</Category>\n" for name in names)
    text = (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{categories}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )
    write_text(Path(f"{target}.aux.xml"), text)


def check_whole(path: Path) -> None:
    """OSError where a block of a GeoTIFF lies beyond the file's end, as after a full disk, of which GDAL may not tell.
    """
    size = os.path.getsize(path)
    with gdal_settings(), need("rasterio").open(path) as found:
        rows, columns = (-(-side // block) for side, block in zip(found.shape, found.block_shapes[0]))
        for band in found.indexes:
            for row in range(rows):
                for column in range(columns):
                    place, length = (
                        int(found.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=band) or 0)
                        for what in ("OFFSET", "SIZE")
                    )
                    if place + length > size:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

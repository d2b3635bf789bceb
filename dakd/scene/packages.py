"""The packages of the extra `geo`, imported only where a scene needs them."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from dakd.shipped import extra_remedy

_CACHE_BYTES = 160 << 20  # of GDAL's blocks; by default it takes 5 % of the host's memory


def need(name: str) -> ModuleType:
    """A module of the extra; RuntimeError with the command that installs it where it is missing or broken."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        remedy = extra_remedy("geo")
        raise RuntimeError(f"{package} cannot be imported ({error}), which scenes need; {remedy}") from None


def need_all() -> None:
    """RuntimeError where a package of the extra is missing."""
    for name in ("rasterio", "shapely", "pyproj", "pyogrio", "scipy.ndimage"):
        need(name)


@contextmanager
def gdal_settings(**settings: Any) -> Iterator[None]:
    """GDAL with a bounded cache, and without a look at other files of the folder or at the network."""
    rasterio = need("rasterio")
    logger = logging.getLogger("rasterio")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # each error is raised too
    try:
        with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, **settings):
            # Rasters without a place are known as such, and so are those that are about to get theirs.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            yield
    finally:
        logger.setLevel(before)

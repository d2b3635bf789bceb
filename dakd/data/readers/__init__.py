"""Datasets on disk, or simulated, as samples; `open_dataset` gives the one that a configuration names."""

from __future__ import annotations

from dakd.config import PrepareConfig
from dakd.data.readers.bad_file import BadFile
from dakd.data.readers.base import BadDataset, Dataset, SampleFiles

__all__ = ["BadDataset", "BadFile", "Dataset", "SampleFiles", "open_dataset"]


def open_dataset(cfg: PrepareConfig, seed: int = 0) -> Dataset:
    """The dataset of `cfg.dataset`, to be packed. ValueError when its root is absent or has no layout that is known.

    seed: of the simulated dataset; the others do not look at it.
    """
    dataset = _open(cfg, seed)
    dataset.leave_out_unpackable()
    return dataset


def _open(cfg: PrepareConfig, seed: int) -> Dataset:
    if cfg.dataset == "simulated":
        from dakd.data.readers.simulated import SimulatedDataset

        return SimulatedDataset(cfg.simulation, seed)
    if cfg.dataset == "osd":
        from dakd.data.readers.osd import OsdDataset

        return OsdDataset(cfg.root, mask_values=cfg.mask_values)
    if cfg.dataset == "sos":
        from dakd.data.readers.sos import SosDataset

        return SosDataset(cfg.root, cfg.sensor, cfg.polarity, cfg.mask_threshold, cfg.mask_values)
    from dakd.data.readers.folder import FolderDataset

    return FolderDataset(cfg.root, cfg.classes, cfg.mask_values)

"""The simulated dataset behind the interface of a reader: nothing on disk, every sample drawn from (seed, index)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dakd.config import SimulationConfig
from dakd.data.readers.base import UNLABELLED, Dataset, SampleFiles
from dakd.data.sample import OSD_CLASSES, Sample
from dakd.data.simulate import simulate

# Test scenes are numbered from here, so that they stay the same for any number of training scenes.
_TEST_START = 1 << 32


class SimulatedDataset(Dataset):
    """cfg.num_train and cfg.num_test scenes with the classes of OSD."""

    classes = OSD_CLASSES

    def __init__(self, cfg: SimulationConfig, seed: int) -> None:
        super().__init__()
        self._cfg, self._seed = cfg, seed
        for split, count in (("train", cfg.num_train), ("test", cfg.num_test)):
            self._entries[split] = [
                SampleFiles(f"{split}-{i:06d}", Path(f"simulated/{split}/{i}"), None) for i in range(count)
            ]

    def read(self, entry: SampleFiles) -> Sample:
        split, number = entry.key.split("-")
        index = int(number) + (_TEST_START if split == "test" else 0)
        sample = replace(simulate(index, self._cfg, self._seed), key=entry.key)
        return replace(sample, label=None) if entry.split == UNLABELLED else sample

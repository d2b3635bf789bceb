"""The README's pictures, from a finished run of the demo: `python benchmarks/readme_pictures.py runs/demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dakd.data.pictures import contact_sheet, image_grid
from dakd.data.shards import ShardSet
from dakd.data.soft_labels import likeliest_class

PICTURES = Path(__file__).resolve().parent / "results" / "pictures"
NUM_PAIRS, COLUMNS, SCALE = 16, 4, 2


def main(run: Path) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for step, folder in (("prepare", run / "prepare" / "train"), ("generate", run / "generate")):
        pairs = telling_pairs(ShardSet(folder))
        save(contact_sheet(pairs, ShardSet(folder).classes, columns=COLUMNS, scale=SCALE), step)
    stages = [newest(run / "train_jointnet" / f"stage{stage}" / "samples") for stage in (1, 2, 3)]
    grids = [np.asarray(Image.open(path).convert("RGB")) for path in stages]
    save(Image.fromarray(side_by_side(grids)), "train_jointnet")
    save(predictions(run), "predict")


def telling_pairs(shards: ShardSet) -> list:
    """The first samples that show two classes or more."""
    chosen = []
    for i in range(len(shards)):
        sample = shards.read(i)
        label = sample.label if sample.label is not None else likeliest_class(sample.soft_label)
        if len(np.unique(label)) > 1 and len(chosen) < NUM_PAIRS:
            chosen.append(sample)
    return chosen


def predictions(run: Path) -> Image.Image:
    """Rows of held-out images: image, truth, each student."""
    folder = run / "evaluate" / "pictures"
    order = ("image", "truth", "real", "real+synthetic")
    names = sorted(path.name.removesuffix("_image.png") for path in folder.glob("[0-9]*_image.png"))
    rows = []
    for name in names:
        tiles = [np.asarray(Image.open(folder / f"{name}_{kind}.png").convert("RGB")) for kind in order]
        if len(np.unique(tiles[1].reshape(-1, 3), axis=0)) > 2:
            rows.append(np.concatenate(tiles, axis=1))
    classes = ShardSet(run / "prepare" / "test").classes
    legend = contact_sheet([(rows[0][:8], None)], classes)
    grid = image_grid(rows[:8], columns=2, scale=SCALE)
    legend = legend.crop((0, legend.height - 20, legend.width, legend.height))
    sheet = Image.new("RGB", (grid.width, grid.height + legend.height), (255, 255, 255))
    sheet.paste(grid)
    sheet.paste(legend, (0, grid.height))
    return sheet


def side_by_side(pictures: list[np.ndarray], gap: int = 24) -> np.ndarray:
    """Pictures of one height in a row."""
    space = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (space, picture)][1:], axis=1)


def newest(folder: Path) -> Path:
    return sorted(folder.glob("*.png"))[-1]


def save(picture: Image.Image, name: str) -> None:
    picture.save(PICTURES / f"{name}.png", optimize=True)
    print(PICTURES / f"{name}.png", picture.size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

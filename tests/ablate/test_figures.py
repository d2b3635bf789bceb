"""The figures show the tiles, captions and noise that they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ablate_worlds import plan_of

from dakd.ablate import figures
from dakd.ablate.figures import TIMESTEPS, captioned_rows, draw_figures, noising_figure
from dakd.ablate.run import JobStore
from dakd.data.prepare import prepare
from dakd.data.sample import Sample
from dakd.models.student import MultiScale


def test_rows_have_captions_heads_and_whole_tiles():
    tile = np.full((16, 16), 200, np.uint8)
    picture = np.asarray(captioned_rows({"one": [tile, tile], "a longer caption": [tile]}, ["left", "right"]))
    side = 128  # 16 pixels, magnified eight times
    left = picture.shape[1] - 8 - 2 * (side + 4)
    for top, columns in ((32, 2), (32 + side + 4, 1)):
        for column in range(columns):
            start = left + column * (side + 4)
            assert (picture[top : top + side, start : start + side] == 200).all()
            assert (picture[top : top + side, start - 1] == 255).all()
    assert (picture[32 + side + 4 :, left + side + 4 :] == 255).all()  # the second row has one tile
    assert (picture[:, :8] == 255).all() and (picture[: 32 - 8, left:] < 255).any()


def test_a_figure_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        captioned_rows({}, [])


def test_the_scaled_mask_drowns_earlier_than_the_mask_as_it_is():
    label = np.zeros((64, 64), np.uint8)
    label[:, 40:] = 1
    sample = Sample("one", np.full((64, 64), 128, np.uint8), label=label)
    picture = np.asarray(noising_figure(sample, 0.3)).astype(float)[..., 0]
    width = 128
    rows = picture[32 : 32 + 3 * (width + 4)]
    left = picture.shape[1] - 8 - len(TIMESTEPS) * (width + 4)
    column = 2  # t = 250
    start = left + column * (width + 4)
    halves = {}
    for name, row in (("as it is", 1), ("scaled", 2)):
        tile = rows[row * (width + 4) : row * (width + 4) + width, start : start + width]
        halves[name] = tile[:, 80:].mean() - tile[:, :80].mean()
    assert 0 < halves["scaled"] < 0.6 * halves["as it is"]


def test_predictions_are_made_at_the_scales_that_the_scores_are(tmp_path, monkeypatch):
    plan, store = plan_of({"name": "msc", "set": {"evaluate.scales": [0.5, 1.0]}}), JobStore(tmp_path)
    scores = plan.cells[0].jobs["student"]
    prepare(scores.config, store.folder_of(scores))
    (store.folder_of(scores) / "job.json").write_text("{}")
    seen = []

    def predict(model, images):
        seen.append(model)
        return torch.zeros(1, *images.shape[-2:], dtype=torch.int64)

    monkeypatch.setattr(figures, "find_students", lambda *_: {"real": None})
    monkeypatch.setattr(figures, "open_student", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(figures, "predict_classes", predict)
    assert [path.name for path in draw_figures(plan, store, tmp_path / "figures")] == ["predictions.png"]
    assert len(seen) == 4 and all(isinstance(model, MultiScale) for model in seen)
    assert seen[0].scales == (0.5, 1.0)

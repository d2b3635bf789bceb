"""Pictures: colours where labels are, images left of their labels."""

from __future__ import annotations

import numpy as np
import pytest

from dakd.data.pictures import colourise, contact_sheet, image_grid, overlay
from dakd.data.sample import OSD_CLASSES, SOS_CLASSES, Sample

SAR = np.full((6, 8), 100, np.uint8)
LABEL = np.tile(np.array([0, 1, 2, 3, 4, 255, 0, 1], np.uint8), (6, 1))


def test_every_class_gets_its_colour_and_ignored_pixels_are_grey():
    picture = colourise(LABEL, OSD_CLASSES)
    assert picture.shape == (6, 8, 3) and picture.dtype == np.uint8
    assert [tuple(picture[0, i]) for i in range(5)] == list(OSD_CLASSES.colours)
    assert tuple(picture[0, 5]) == (128, 128, 128)


def test_overlay_leaves_the_first_class_as_it_is_and_mixes_the_others():
    picture = overlay(SAR, LABEL, OSD_CLASSES, alpha=0.25)
    assert tuple(picture[0, 0]) == (100, 100, 100)
    assert tuple(picture[0, 1]) == (75, 139, 139)


def test_overlay_shows_a_class_whose_colour_is_grey_in_orange_and_ignored_pixels_in_grey():
    label = np.array([[0, 1, 255]], np.uint8)
    picture = overlay(np.full((1, 3), 200, np.uint8), label, SOS_CLASSES, alpha=1.0)
    assert [tuple(pixel) for pixel in picture[0]] == [(200, 200, 200), (255, 110, 0), (128, 128, 128)]


def test_contact_sheet_shows_the_image_left_and_the_label_right():
    sheet = np.array(contact_sheet([(SAR, LABEL)] * 3, OSD_CLASSES, columns=2, scale=2))
    assert (sheet[4:16, 4:20] == 100).all()
    assert tuple(sheet[4, 4 + 16 + 1]) == (0, 0, 0) and tuple(sheet[4, 4 + 16 + 1 + 2]) == (0, 255, 255)


def test_contact_sheet_takes_soft_labels_missing_labels_and_mixed_sizes():
    soft = np.zeros((5, 4, 4), np.float16)
    soft[4] = 1
    samples = [Sample("a", np.zeros((4, 4), np.uint8), soft_label=soft), Sample("b", SAR), Sample("c", SAR, LABEL)]
    sheet = np.array(contact_sheet(samples, OSD_CLASSES, columns=3))
    assert tuple(sheet[4, 4 + 4 + 1]) == OSD_CLASSES.colours[4]


def test_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs at least one image; found none"):
        image_grid([])


def test_the_legend_names_unknown_pixels_where_there_are_some():
    """A narrow sheet has one line of legend for each name."""
    label = np.zeros((8, 4), np.uint8)
    without = contact_sheet([(label, label)], OSD_CLASSES)
    label[0, 0] = 255
    with_unknown = contact_sheet([(label, label)], OSD_CLASSES)
    assert with_unknown.height - without.height == 16


def test_a_contact_sheet_with_titles_has_each_above_its_row():
    plain = np.array(contact_sheet([(SAR, LABEL)] * 3, OSD_CLASSES, columns=2, scale=2))
    titled = np.array(contact_sheet([(SAR, LABEL)] * 3, OSD_CLASSES, columns=2, scale=2, titles=("first", "second")))
    assert (titled[16 : 16 + 16, : plain.shape[1]] == plain[:16]).all(), "the first row, with the gap above it"
    second = 16 + 20 + 16  # a title, a row of 12 pixels with a gap above and below, a title
    assert (titled[second + 4 : second + 16, 4:20] == 100).all()
    for top in (0, second - 16):
        assert (titled[top : top + 16] != 245).any(), "a title"
    with pytest.raises(ValueError, match="shorter"):
        contact_sheet([(SAR, LABEL)] * 3, OSD_CLASSES, columns=2, titles=("first",))

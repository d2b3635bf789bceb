"""Masks that lie among images and would be read as such: found by a word in their names and the image beside them."""

from __future__ import annotations

import re
from pathlib import Path


def _at_an_end(words: str, numbered: str = "(?!)") -> tuple[re.Pattern, re.Pattern]:
    """These words as the end of a name, and as its beginning, where a digit may follow at once.

    numbered: those that may have a number behind them at the end, as where an image has several masks.
    """
    return re.compile(rf"[_-]+(?:{words}|(?:{numbered})[_-]?[0-9]+)$"), re.compile(rf"^(?:{words})(?:[_-]+|(?=[0-9]))")


_MASK = _at_an_end(
    "masks?|msks?|labels?|lbls?|(?:label_?)?train_?ids?|label_?ids?|instance_?ids?|gt|gt_?fine|gt_?coarse|segs?"
    "|segmentations?|annotations?|annot?|(?:ground[_-]?)?truths?",
    numbered="masks?|msks?|labels?|lbls?|gt",
)
# Words of images too: target_1 and clutter_1, a_color and a_vv, a_l and a_c of two bands.
_PERHAPS_MASK = _at_an_end("colou?r|binary|bin|targets?|l|manual[0-9]*")
_ANY = _at_an_end("[a-z][a-z0-9]*")


def find_mask_among(images: dict[str, Path]) -> tuple[Path, Path] | None:
    """The first mask among {key: path} of images, and an image that it belongs to; None where there is none.

    A name with a word for masks counts where the rest of it is another file's name, alone or, of a word that nothing
    but masks have, with any other word: N_mask beside N or N_sat, mask_N beside image_N. So images that all have such
    a word stay images.
    """
    names = {key.lower(): path for key, path in images.items()}
    pairs: dict[str, Path] = {}
    for name, path in names.items():
        if not _rests(name, _MASK):
            pairs |= dict.fromkeys([name, *_rests(name, _ANY)], path)
    for name, path in names.items():
        for rest, is_certain in _rests_of_mask(name).items():
            image = pairs.get(rest) if is_certain else names.get(rest)
            if image not in (None, path):
                return path, image
    return None


def _rests(name: str, words: tuple[re.Pattern, re.Pattern]) -> list[str]:
    """A name without one of the words, for each end that has one."""
    rests = (name[: match.start()] + name[match.end() :] for word in words if (match := word.search(name)))
    return [rest for rest in rests if rest]


def _rests_of_mask(name: str) -> dict[str, bool]:
    """The rest of a name without its words for masks, and whether one of these words is used for masks alone."""
    found: dict[str, bool] = {}
    new = [(name, False)]
    while new:
        name, is_certain = new.pop()
        more = [(rest, True) for rest in _rests(name, _MASK)]
        more += [(rest, is_certain) for rest in _rests(name, _PERHAPS_MASK)]
        for rest, is_certain in more:
            found[rest] = found.get(rest, False) or is_certain
        new += more
    return found

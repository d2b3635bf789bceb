"""Model cards: the README.md that the Hugging Face hub shows for a model, YAML between `---` lines and then Markdown.

A card follows from the metadata of a weights file and, where its run folder is given, from the run's configuration,
the indexes of its data and the scores of `dakd evaluate`. It holds no path of the machine that it was written on.
"""

from dakd.card.subject import count_parameters, without_places
from dakd.card.write import CARD_FILE, TEACHER_FILE, card_of, card_text, is_foreign, write_card, write_cards

__all__ = [
    "CARD_FILE", "TEACHER_FILE", "card_of", "card_text", "count_parameters", "is_foreign", "without_places",
    "write_card", "write_cards",
]  # fmt: skip

"""The Markdown documents of the repository, and what tests take from them: Python, command lines, links, paths.

In a document, a fence that is marked `python` is run as it stands, one block after the other in one folder that holds
`student.safetensors`, `weights_ema.safetensors` and `image.png`. A sketch that cannot run is fenced without a language.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = ("dakd", "csrc", "launch", "configs", "benchmarks", "tests")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(_FOLDERS)})/[\w./-]*\w\.\w+")


_SETTING = re.compile(
    r"(?<![\w./-])(?:prepare|balance|data|train_jointnet|generate|pseudo_label|train_saross|evaluate|predict)(?:\.[a-z]\w*)+"
)


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(path for name in _FOLDERS for path in (ROOT / name).rglob("*.md"))])


def python_blocks(text: str) -> list[str]:
    return [block for language, block in _FENCE.findall(text) if language == "python"]


def prose(text: str) -> str:
    """The text without its fences and indented blocks."""
    return re.sub(r"^    .*$", "", _FENCE.sub("", text), flags=re.MULTILINE)


def command_lines(text: str) -> list[str]:
    """The lines to type, of fences marked `sh` and of indented blocks: joined where they continue, without comments."""
    text = re.sub(r"\\\n *", "", text)
    lines = re.findall(r"^    (.*)$", _FENCE.sub("", text), re.MULTILINE)
    lines += [line for language, block in _FENCE.findall(text) if language == "sh" for line in block.splitlines()]
    return [line.partition(" # ")[0].strip() for line in lines]


def links(text: str) -> list[str]:
    """The targets of links to files and headings of the repository."""
    return [target for target in _LINK.findall(prose(text)) if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What a link to a heading may name: in lower case, hyphens for spaces, without punctuation."""
    headings = re.findall(r"^#+ +(.*?) *$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_paths(text: str) -> list[str]:
    """The files of the repository that a text names by their path from its root; none that stand for several."""
    return [path for path in _PATH.findall(text) if not re.search(r"[A-Z]{2}", path.replace("README.md", ""))]


def named_settings(text: str) -> list[str]:
    """The settings and sections that a text names by their dotted key."""
    return [key for key in _SETTING.findall(text) if not key.endswith((".py", ".json", ".yaml", ".sbatch"))]

"""The pieces of the report's page: style, tables, pictures embedded in the page, folding blocks. Nothing is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from dakd.metrics.tables import format_cell

MAX_SIDE = 1400  # pixels; a larger picture is shrunk before it is embedded
_THUMBNAIL = 480  # pixels

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5c6b7a; --paper: #fbfbf9; --card: #ffffff; --line: #dde3e8;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe6ec; --soft: #93a1af; --paper: #14191f; --card: #1b222a;
  --line: #303a45; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 96px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; } h2 { font-size: 22px; margin: 56px 0 12px; padding-top: 16px;
  border-top: 1px solid var(--line); } h3 { font-size: 17px; margin: 28px 0 8px; }
p { margin: 8px 0; max-width: 72ch; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.lead, figcaption, .note { color: var(--soft); } .note { font-size: 14px; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 16px 0 0; font-size: 15px; }
.missing { border-left: 3px solid var(--line); padding: 4px 12px; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; font-size: 15px; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 700; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 18px;
  min-width: 150px; }
.card b { display: block; font-size: 26px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 14px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 12px; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
figure { margin: 12px 0; } figcaption { font-size: 14px; margin-top: 4px; }
img { max-width: 100%; height: auto; display: block; border-radius: 3px; } img.small { image-rendering: pixelated; }
.strip { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; } .strip figure { margin: 0; }
.strip img { width: 122px; border: 1px solid var(--line); } .strip figcaption { font-size: 12px; max-width: 122px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(510px, 100%), 1fr)); gap: 16px; }
.gallery.wide { grid-template-columns: 1fr; } .wide img { width: 250px; } .wide figcaption { max-width: 250px; }
.pairs { display: flex; flex-wrap: wrap; gap: 14px; } .pairs > div { display: flex; gap: 3px; }
.pairs img { width: 122px; border: 1px solid var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 14px; color: var(--soft); margin: 8px 0; }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border: 1px solid var(--soft);
  vertical-align: -1px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; overflow-x: auto;
  font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--accent); }
details { margin: 10px 0; }
.small-multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); gap: 10px;
  margin: 10px 0; }
.small-multiples figure { margin: 0; } .small-multiples img { width: 100%; }
.small-multiples figcaption { font-size: 12px; }
.figures { margin: 12px 0; display: flex; flex-wrap: wrap; gap: 12px 16px; align-items: flex-start; }
.figures figure { margin: 0; max-width: 100%; }
.caption { font-size: 14px; color: var(--soft); margin: 2px 6px 4px; }
@media (max-width: 600px) { body { padding: 20px 14px 64px; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML page; body: HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def heading(title: str, lead: str) -> str:
    return f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'


def subheading(title: str) -> str:
    return f"<h3>{escape(title)}</h3>"


def section(anchor: str, title: str, *parts: str) -> str:
    return f'<h2 id="{anchor}">{escape(title)}</h2>\n' + "\n".join(part for part in parts if part)


def missing(what: str, step: str) -> str:
    """Said in place of a part that the run has not made."""
    return (
        f'<p class="missing">{escape(what)}: not there, because the step <b>{escape(step)}</b> has not written it.</p>'
    )


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str | float | int | None]], mark_best: bool = False) -> str:
    """Floats show two decimals, None a dash. mark_best: a column's largest number is bold, unless all are equal."""
    best = _best_places(rows) if mark_best and len(rows) > 1 else set()
    lines = ["<tr>" + "".join(f"<th>{escape(str(cell))}</th>" for cell in header) + "</tr>"]
    for number, row in enumerate(rows):
        cells = (
            f"<td{' class=best' if (number, column) in best else ''}>{escape(format_cell(cell))}</td>"
            for column, cell in enumerate(row)
        )
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def cards(entries: Sequence[tuple[str, str]]) -> str:
    """Large numbers with a word on each; entries: (number, word)."""
    boxes = (f'<div class="card"><b>{escape(value)}</b><span>{escape(word)}</span></div>' for value, word in entries)
    return f'<div class="cards">{"".join(boxes)}</div>'


def charts(drawings: Sequence[str]) -> str:
    """drawings: SVG."""
    return '<div class="charts">' + "".join(f'<div class="chart">{one}</div>' for one in drawings) + "</div>"


def figure(path: Path, caption: str = "", magnify: bool = False) -> str:
    """A picture inside the page; magnify: a small picture is shown up to twice its size."""
    return f"<figure>{picture(path, magnify)}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(path: Path, magnify: bool = False) -> str:
    data, width = _embeddable(path)
    kind = ' class="small"' if width < 400 else ""
    size = f' width="{2 * width}"' if magnify and width < 500 else ""
    encoded = base64.b64encode(data).decode()
    return f'<img{kind}{size} alt="{escape(path.stem)}" src="data:image/png;base64,{encoded}">'


def thumbnail(path: Path, caption: str) -> str:
    """A picture of at most _THUMBNAIL pixels, a large one as JPEG: many of them stay a small page."""
    with Image.open(path) as opened:
        if max(opened.size) <= _THUMBNAIL and opened.format == "PNG":
            return figure(path, caption)
        image = opened.convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=75, optimize=True)
    encoded = base64.b64encode(stream.getvalue()).decode()
    source = f'<img alt="{escape(path.stem)}" src="data:image/jpeg;base64,{encoded}">'
    return f"<figure>{source}<figcaption>{escape(caption)}</figcaption></figure>"


def small_multiples(tiles: Sequence[str]) -> str:
    """Thumbnails in as many columns as fit."""
    return f'<div class="small-multiples">{"".join(tiles)}</div>'


def figures(each: Sequence[str]) -> str:
    """Figures at their own size, as many in a row as fit."""
    return f'<div class="figures">{"".join(each)}</div>'


def caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>'


def gallery(strips: Sequence[str], is_wide: bool) -> str:
    """Strips in two columns, or with large pictures in one."""
    return f'<div class="gallery{" wide" if is_wide else ""}">{"".join(strips)}</div>'


def strip(figures: Sequence[str]) -> str:
    """Figures beside one another."""
    return f'<div class="strip">{"".join(figures)}</div>'


def pairs(tiles: Sequence[Sequence[str]]) -> str:
    """Groups of pictures that stand close together, side by side."""
    return '<div class="pairs">' + "".join(f"<div>{''.join(group)}</div>" for group in tiles) + "</div>"


def legend(names: Sequence[str], colours: Sequence[Sequence[int]]) -> str:
    marks = (
        f'<span><i style="background:rgb({red},{green},{blue})"></i>{escape(name)}</span>'
        for name, (red, green, blue) in zip(names, colours)
    )
    return f'<div class="legend">{"".join(marks)}</div>'


def folded(summary: str, text: str) -> str:
    """Plain text behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def folded_parts(summary: str, *parts: str) -> str:
    """HTML behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def _best_places(rows: Sequence[Sequence[str | float | int | None]]) -> set[tuple[int, int]]:
    places = set()
    for column in range(1, len(rows[0])):
        values = [row[column] for row in rows]
        numbers = [value for value in values if isinstance(value, float)]
        if numbers and min(numbers) < max(numbers):
            places |= {(number, column) for number, value in enumerate(values) if value == max(numbers)}
    return places


def _embeddable(path: Path) -> tuple[bytes, int]:
    """PNG bytes of a picture, shrunk where it is large, and its width in pixels."""
    with Image.open(path) as opened:
        if max(opened.size) <= MAX_SIDE and opened.format == "PNG":
            return path.read_bytes(), opened.width
        image = opened.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue(), image.width

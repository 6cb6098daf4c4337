"""HTML pages that need no other file: frame, tables, pictures. Dark where the reader's system is."""

import base64
import html
from collections.abc import Collection, Iterable

__all__ = ["document", "number", "picture", "table", "text"]

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --soft: #666; --faint: #d9d9d9; --good: #0b7a75;
  --bad: #c8553d }
@media (prefers-color-scheme: dark) { :root { --paper: #17191c; --ink: #e2e2e2; --soft: #a3a3a3; --faint: #3b3e43;
  --good: #4fc3b8; --bad: #f08a70 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
  margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: .2em } h2 { font-size: 1.15em; margin-top: 2.2em }
p.note, footer { color: var(--soft); font-size: .9em }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: .6em 0 1.4em }
th, td { text-align: left; padding: .22em .6em; border-bottom: 1px solid var(--faint); white-space: nowrap }
th { font-weight: 600; border-bottom: 2px solid var(--ink) }
td.number, th.number { text-align: right }
"""


def document(title: str, body: Iterable[str], *, css: str = "") -> str:
    """A whole page; css comes after what all pages share."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{text(title)}</title>'
        f"<style>{CSS}{css}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], numbers: Collection[int] = ()) -> str:
    """heads are texts, rows are <td> cells; the columns in numbers stand to the right."""
    head = "".join(
        f"<th{' class=number' if i in numbers else ''}>{text(str(name))}</th>" for i, name in enumerate(heads)
    )
    lines = "".join("<tr>" + "".join(row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def number(value: float, form: str = "#.3g") -> str:
    """A cell."""
    return f'<td class="number">{value:{form}}</td>'


def picture(png: bytes, alt: str) -> str:
    """A PNG inside the page."""
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def text(value: str) -> str:
    """Any text as HTML shows it."""
    return html.escape(value)

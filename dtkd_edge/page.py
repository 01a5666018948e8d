"""A report as one HTML file: its plots inside, no script, nothing fetched, light or dark as the reader's system is. No torch."""

from __future__ import annotations

from html import escape
from importlib import resources

from dtkd_edge import plots

_SERIES_STYLE = "".join(
    f".line.s{i}, .error.s{i} {{ stroke:var(--s{i}) }} .dot.s{i} {{ fill:var(--s{i}) }} i.s{i} {{ background:var(--s{i}) }}\n"
    for i in range(1, plots.COLORS + 1)
)


def document(title: str, body: str) -> str:
    """The whole file; `body` is HTML, `title` is text."""
    style = resources.files("dtkd_edge").joinpath("page.css").read_text(encoding="utf-8") + _SERIES_STYLE
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def figure(title: str, svg: str, key: str = "", note: str = "") -> str:
    text = f"<p>{escape(note)}</p>" if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{key}{svg}{text}</figure>"

"""What notebooks show: tables of results and reports, and bars while something runs.

Everything that is shown comes from documents and labels, and is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from ragadapt.text import CONTROL, encodable

_CLIPPED = 400  # characters of a cell


def html_table(headers: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of plain texts, the first row its head; texts that look like numbers are set right."""

    def cell(name: str, text: str) -> str:
        right = name == "td" and text.replace("−", "-").strip("+-×%").replace(",", "").replace(".", "").isdigit()
        return f'<{name} style="text-align: {"right" if right else "left"}">{html_text(text)}</{name}>'

    head = "".join(cell("th", header) for header in headers)
    body = "".join(f"<tr>{''.join(cell('td', text) for text in row)}</tr>" for row in rows)
    title = f'<caption style="text-align: left">{html_text(caption)}</caption>' if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_text(text: str, most: int = _CLIPPED) -> str:
    """One line of text that is nothing but text in HTML: escaped, without control characters, cut to `most`."""
    line = " ".join(CONTROL.sub(" ", encodable(text)).split())
    return escape(line if len(line) <= most else f"{line[:most].rstrip()} …")


def progress_bars() -> Callable[[str, int, int], None]:
    """For `progress=`: a bar for each stage, drawn by tqdm as the place allows (in a notebook as a widget where
    ipywidgets is there, else as text on stderr).

    `fit(documents, folder, progress=progress_bars())`.
    """
    from tqdm.auto import tqdm  # transformers brings it

    return _Bars(tqdm)


class _Bars:
    """progress(stage, done, total) → a bar that closes when its stage is done; one that starts again has a new bar."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self._open: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        bar = self._open.get(stage)
        if bar is None:
            name = stage[:1].upper() + stage[1:]
            # initial: where an interrupted stage goes on; only what is done from here on says how fast it is
            bar = self._open[stage] = self._make(total=total or None, desc=name, initial=done, leave=True)
        bar.total = total or None
        bar.update(done - bar.n)
        if total and done >= total:
            bar.close()
            del self._open[stage]

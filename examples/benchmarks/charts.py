"""The report's charts as files of their own, for the docs."""

from __future__ import annotations

from pathlib import Path

STYLE = (
    "svg{font-family:system-ui,sans-serif;background:#fff}text{fill:#17202b;font-size:12px}"
    ".tick,.axis-label{fill:#566374;font-size:11px}.grid{stroke:#dfe4ea}.axis{stroke:#566374}"
    ".level{stroke:#566374;stroke-width:1.3;stroke-dasharray:4 4}.line{fill:none;stroke-width:2.2}.band{opacity:.13}"
    ".point{stroke:#fff;stroke-width:1.5}.s1.line{stroke-dasharray:6 4}"
    ".s2.line{stroke-dasharray:2 3}.s3.line{stroke-dasharray:9 3 2 3}"
)
COLOURS = ("#1b5fc1", "#c2571a", "#2a7d4f", "#7a3fa8")


def write_chart(path: Path, chart: object) -> Path:
    """An SVG with name space and colours. chart: the markup of ragadapt.report.charts."""
    colours = "".join(
        f".s{at}.line{{stroke:{colour}}}.s{at}.point,.s{at}.band{{fill:{colour}}}" for at, colour in enumerate(COLOURS)
    )
    opening, rest = str(chart).split(">", 1)
    text = f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}{colours}</style>{rest}\n'
    path.write_text(text, encoding="utf-8")
    return path

"""The report for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .figures import FIGURES, Found, cells, contestants, without_figure


def show(found: Found, console: Console) -> None:
    """A table for each figure that anybody has, and why figures are missing."""
    for figure in FIGURES:
        lines = cells(figure, found)
        if not lines:
            continue
        table = Table(title=figure.title, title_justify="left")
        table.add_column("", no_wrap=True)
        for name in contestants(found):
            table.add_column(name, justify="right")
        for workload, line in lines.items():
            table.add_row(workload, *(cell.text(figure.digits) if cell else "" for cell in line))
        console.print(table)
    for reason in without_figure(found):
        console.print(f"no figure: {reason}", highlight=False)

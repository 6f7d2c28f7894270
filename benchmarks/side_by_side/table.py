"""The report for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .figures import FIGURES, Found, contestants, failures


def show(found: Found, console: Console) -> None:
    """A table for each figure that anybody has, and why figures are missing."""
    names = contestants(found)
    for figure in FIGURES:
        lines = {workload: [figure.of(found, workload, name) for name in names] for workload in found}
        if not any(cell for cells in lines.values() for cell in cells):
            continue
        table = Table(title=figure.title, title_justify="left")
        table.add_column("", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right")
        for workload, cells in lines.items():
            if any(cells):
                table.add_row(workload, *(cell.text(figure.digits) if cell else "" for cell in cells))
        console.print(table)
    for workload in found:
        for name in names:
            for problem in dict.fromkeys(failures(found, workload, name)):
                console.print(f"no figure: {workload}, {name}: {problem}", highlight=False)

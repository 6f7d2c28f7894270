"""What the demo shows while it runs: a line per finished phase, and below it what happens now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

PLAIN_WIDTH = 120  # of a log, which has no width of its own


class Screen:
    """Phases with live progress on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.console = Console()
        if not self.console.is_terminal:
            self.console = Console(width=PLAIN_WIDTH)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False)

    @contextmanager
    def phase(self, title: str) -> Iterator[Phase]:
        """One phase; its line stays with the time it took."""
        began = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn())
        live = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not live) as progress:
            phase = Phase(title, progress)
            yield phase
        took = time.monotonic() - began
        detail = f"  [dim]{phase.outcome}[/dim]" if phase.outcome else ""
        self.say(f"  [green]✓[/green] {title:<34} [cyan]{took:6.1f} s[/cyan]{detail}")


class Phase:
    """The phase that runs now."""

    def __init__(self, title: str, progress: Progress) -> None:
        self.title, self.outcome = title, ""
        self._progress = progress
        self._task: TaskID = progress.add_task(title, total=None)

    def show(self, detail: str, fraction: float | None = None) -> None:
        """What happens now; `fraction` from 0 to 1 where it is known."""
        known: dict[str, Any] = {} if fraction is None else {"total": 1.0, "completed": fraction}
        self._progress.update(self._task, description=f"{self.title}: {detail}", **known)

"""The command `colo guest`: builds the guest and says where it is."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pycolo.guest.builder import build_guest


@click.group()
def guest() -> None:
    """The small Linux guest of the demo and the tests."""


@guest.command()
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of built guests; the default is $XDG_CACHE_HOME/pycolo or ~/.cache/pycolo.",
)
def build(cache_dir: Path | None) -> None:
    """Build the guest from Debian packages, unless it is built already."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        image = build_guest(cache_dir, lambda step, fraction: bar.update(task, description=step, completed=fraction))
    click.echo(f"kernel  {image.kernel}")
    click.echo(f"initrd  {image.initrd}")

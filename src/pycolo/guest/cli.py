"""The command `colo guest`: builds the guest and its disk, and says where they are."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pycolo.guest.builder import build_guest
from pycolo.guest.disk_image import build_disk


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
    """Build the guest and its disk from Debian packages, unless they are built already."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def show(step: str, fraction: float) -> None:
            bar.update(task, description=step, completed=fraction)

        image = build_guest(cache_dir, show)
        disk = build_disk(cache_dir, show)
    click.echo(f"kernel  {image.kernel}")
    click.echo(f"initrd  {image.initrd}")
    click.echo(f"disk    {disk}")

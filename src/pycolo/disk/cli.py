"""The command `colo disk`: serves a disk image, and makes one from other formats."""

import asyncio
import signal
from pathlib import Path

import click


@click.group()
def disk() -> None:
    """The guest's disk."""


@disk.command()
@click.argument("image", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path, readable=False),
    required=True,
    help="The unix socket on which NBD clients, like QEMU, find the disk.",
)
@click.option("--read-only", is_flag=True, help="Refuse all changes.")
@click.option("--format", "image_format", type=click.Choice(["raw"]), help="Serve the bytes, whatever they look like.")
def serve(image: Path, socket_path: Path, read_only: bool, image_format: str | None) -> None:
    """Serve IMAGE, a raw file or a block device, over NBD until SIGTERM or SIGINT."""
    from pycolo.disk.serve import serve_image

    def ready() -> None:
        click.echo(f"serving {image} at nbd+unix:///?socket={socket_path}")

    serve_image(image, socket_path, read_only=read_only, image_format=image_format, ready=ready)


@disk.command("import")
@click.argument("source", type=click.Path(path_type=Path, readable=False))
@click.argument("image", type=click.Path(path_type=Path, readable=False))
def import_(source: Path, image: Path) -> None:
    """Convert SOURCE (qcow2, vmdk, vdi, ...) to the raw image IMAGE."""
    from pycolo.disk.convert import import_image

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its file is removed and qemu-img ends
    import_image(source, image)


@disk.command()
@click.argument("state_dir", type=click.Path(path_type=Path, readable=False))
def watch(state_dir: Path) -> None:
    """Show how the copy of the disks to the secondary goes, until the VM is protected; ask the primary's STATE_DIR."""
    from pycolo.disk.watching import watch_copy

    asyncio.run(watch_copy(state_dir))

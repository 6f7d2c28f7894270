"""The command `colo pki`: makes the certificates by which two hosts know each other."""

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, readable=False)


@click.group()
def pki() -> None:
    """Certificates for the hosts."""


@pki.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
def init(folder: Path) -> None:
    """Make a CA in DIR: ca.crt, which every host gets, and ca.key, which none gets."""
    from pycolo.pki.authority import init_authority

    click.echo(f"{init_authority(folder)} is the CA: copy it to every host; keep ca.key where nobody else is")


@pki.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("host")
@click.option("--out", type=FOLDER, help="Folder for HOST.crt and HOST.key.  [default: DIR]")
@click.option("--days", type=click.IntRange(1, 3650), default=730, show_default=True, help="How long it is valid.")
def issue(folder: Path, host: str, out: Path | None, days: int) -> None:
    """Make HOST.crt and HOST.key, signed by the CA in DIR; HOST is the `name` of its host.toml."""
    from pycolo.pki import authority

    issued = authority.issue(folder, host, out or folder, days)
    click.echo(f"{issued.cert} and {issued.key} are for {host}: copy them there, with {folder / 'ca.crt'}")

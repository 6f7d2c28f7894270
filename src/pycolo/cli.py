"""The command `colo`. Every failure ends in one sentence on stderr and the exit status of its kind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pycolo import __version__
from pycolo.errors import EnvironmentFault, PycoloError

EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="colo")
def cli() -> None:
    """Non-stop virtual machines on stock QEMU."""


@cli.group()
def config() -> None:
    """Look at configuration files."""


@config.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
@click.option("--kind", type=click.Choice(["host", "vm"]), help="What the files are; without it, their content tells.")
def config_check(files: tuple[Path, ...], kind: str | None) -> None:
    """Name everything that is wrong with host.toml or vm.toml files."""
    from pycolo.config_check import check_file

    wrong = 0
    for path in files:
        found = check_file(path, kind)
        wrong += len(found.errors)
        for error in found.errors:
            click.echo(f"error: {error}", err=True)
        for warning in found.warnings:
            click.echo(f"warning: {warning}", err=True)
        if not found.errors:
            click.echo(f"{path}: a good {found.kind}.toml")
    if wrong:
        raise EnvironmentFault(
            f"{wrong} {'error' if wrong == 1 else 'errors'} found: correct what is named above, and check again"
        )


@cli.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-report"),
    show_default=True,
    help="Folder for the report.",
)
@click.option("--keep", is_flag=True, help="Leave the survivor of the last round running.")
@click.option(
    "--accel",
    type=click.Choice(["auto", "tcg", "kvm"]),
    default="auto",
    show_default=True,
    help="auto: KVM if it boots the guest.",
)
@click.option("--qemu", default="qemu-system-x86_64", show_default=True, help="The QEMU binary.")
@click.option("--memory-mib", type=click.IntRange(128, 16384), default=256, show_default=True, help="Guest memory.")
@click.option(
    "--load-seconds",
    type=click.IntRange(2, 3600),
    default=12,
    show_default=True,
    help="Load before the kill.",
)
@click.option(
    "--dirty-pages",
    type=click.Choice(["auto", "compare"]),
    default="auto",
    show_default=True,
    help="compare: as on a kernel before 6.7, by comparing all memory.",
)
@click.option("--self-check", is_flag=True, help="Compare all memory at every checkpoint.")
def demo(**options: Any) -> None:
    """Kill one host per round under real load: no client notices."""
    from pycolo.demo.run import DemoOptions, run_demo

    run_demo(DemoOptions(**options))


def whole_cli() -> click.Group:
    """`colo` with all its commands."""
    from pycolo.capture.cli import compare
    from pycolo.disk.cli import disk
    from pycolo.guest.cli import guest
    from pycolo.host.cli import COMMANDS
    from pycolo.pki.cli import pki

    for command in (compare, disk, guest, pki, *COMMANDS):
        cli.add_command(command)
    return cli


def main() -> None:
    """Entry point of `colo`."""
    try:
        sys.exit(whole_cli().main(standalone_mode=False) or 0)
    except PycoloError as failure:
        click.echo(f"colo: {failure}", err=True)
        sys.exit(failure.exit_status)
    except click.ClickException as failure:
        failure.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("colo: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()

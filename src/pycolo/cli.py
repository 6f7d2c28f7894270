"""The command `colo`. Every failure ends in one sentence on stderr and the exit status of its kind."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from pycolo import __version__
from pycolo.errors import PycoloError

EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="colo")
def cli() -> None:
    """Non-stop virtual machines on stock QEMU."""


@cli.command()
@click.argument("host_toml", type=click.Path(path_type=Path, readable=False))
@click.argument("vm_toml", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--role",
    type=click.Choice(["primary", "secondary"]),
    required=True,
    help="This host's role at the start.",
)
@click.option(
    "--no-copy-lives",
    is_flag=True,
    help="Start although the arbiter names a holder. Only if you know that no copy of the VM is running.",
)
@click.option(
    "--older-disk",
    is_flag=True,
    help="Start from a disk that was a secondary's. Only if the primary's, which is newer, is lost.",
)
def daemon(host_toml: Path, vm_toml: Path, role: str, no_copy_lives: bool, older_disk: bool) -> None:
    """Run one VM on this host, as half of a pair."""
    from pycolo.core.failover import Role
    from pycolo.daemon import run_daemon
    from pycolo.manager.common import Known

    run_daemon(host_toml, vm_toml, Role(role), Known(no_copy_lives, older_disk))


@cli.command()
@click.argument("state_dir", type=click.Path(path_type=Path, readable=False))
def status(state_dir: Path) -> None:
    """Show what the daemon of STATE_DIR says, as JSON."""
    click.echo(json.dumps(asyncio.run(_ask(state_dir, "status")), indent=2))


@cli.command()
@click.argument("state_dir", type=click.Path(path_type=Path, readable=False))
def checkpoint(state_dir: Path) -> None:
    """Ask the primary of STATE_DIR for a checkpoint."""
    asyncio.run(_ask(state_dir, "checkpoint"))


async def _ask(state_dir: Path, what: str) -> Any:
    from pycolo.api import Client

    async with Client(state_dir) as client:
        return await (client.status() if what == "status" else client.checkpoint())


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


def main() -> None:
    """Entry point of `colo`."""
    from pycolo.disk.cli import disk
    from pycolo.guest.cli import guest

    cli.add_command(disk)
    cli.add_command(guest)
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
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

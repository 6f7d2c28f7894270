"""The commands of `colo` that ask the daemon of this host."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from pycolo.config import HostConfig, VmConfig, load_config
from pycolo.host import models as m
from pycolo.host.client import DaemonClient

CONFIG = Path("/etc/pycolo/host.toml")
SOCKET = Path("/var/lib/pycolo/api.sock")
WATCH_S = 1.0
EXIT_INTERRUPTED = 130
Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")


def daemon_client(host_socket: Path | None, config: Path | None) -> DaemonClient:
    """For the daemon that is asked: as said, else where its configuration says, else at the usual place."""
    host_toml = config or (CONFIG if os.path.exists(CONFIG) else None)
    if host_socket is not None:
        return DaemonClient(host_socket, "HOST_TOML" if config is None else str(config))
    if host_toml is None:
        return DaemonClient(SOCKET, str(CONFIG))
    return DaemonClient(load_config(host_toml, HostConfig).socket, str(host_toml))


def asks_daemon(command: Command) -> Command:
    """The two options that say which daemon is meant."""
    path = click.Path(path_type=Path, readable=False)
    socket = click.option(
        "--host-socket", type=path, envvar="COLO_SOCKET", help="The daemon's socket. [env: COLO_SOCKET]"
    )
    config = click.option("--config", type=path, help=f"The daemon's host.toml, if it is not {CONFIG}.")
    return socket(config(command))


def ask(host_socket: Path | None, config: Path | None, what: Callable[[DaemonClient], Awaitable[T]]) -> T:
    """Carry out one conversation with the daemon."""

    async def talk() -> T:
        async with daemon_client(host_socket, config) as client:
            return await what(client)

    return asyncio.run(talk())


Where = dict[str, Path | None]


@click.command()
@click.argument("host_toml", type=click.Path(path_type=Path, readable=False))
def daemon(host_toml: Path) -> None:
    """Run the daemon of this host."""
    from pycolo.host.program import run_daemon

    run_daemon(host_toml)


@click.command()
@click.argument("vm_toml", type=click.Path(path_type=Path, readable=False))
@click.option("--secondary", default="", metavar="HOST", help="Hold the second copy on this host, and no other.")
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
@asks_daemon
def protect(vm_toml: Path, secondary: str, no_copy_lives: bool, older_disk: bool, **where: Path | None) -> None:
    """Start a VM here if it does not run, and protect it."""
    from pydantic import ValidationError

    from pycolo.errors import EnvironmentFault
    from pycolo.host.follow import follow_until_protected

    vm = load_config(vm_toml, VmConfig)
    named = {key: path for key in ("kernel", "initrd") if (path := getattr(vm, key)) is not None}
    files = {key: (vm_toml.parent / path).absolute() for key, path in named.items()}
    try:
        request = m.ProtectRequest(
            vm=vm.model_copy(update=files), secondary=secondary, no_copy_lives=no_copy_lives, older_disk=older_disk
        )
    except ValidationError:
        raise EnvironmentFault(
            f"--secondary is {secondary!r}, which is no name of a host: see `colo host list`"
        ) from None
    _interruptible(vm.name, lambda client: follow_until_protected(client, request), where)


def _interruptible(vm: str, what: Callable[[DaemonClient], Coroutine[Any, Any, None]], where: Where) -> None:
    try:
        ask(**where, what=what)
    except KeyboardInterrupt:
        click.echo(f"colo: {vm} goes on, and so does its protection: see `colo status {vm}`", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def _simple(name: str, help_text: str, act: Callable[[DaemonClient, str], Awaitable[None]], done: str) -> click.Command:
    """A command that does one thing to one VM."""

    @click.command(name, help=help_text)
    @click.argument("vm")
    @asks_daemon
    def command(vm: str, **where: Path | None) -> None:
        ask(**where, what=lambda client: act(client, vm))
        click.echo(done.format(vm=vm))

    return command


@click.command()
@click.argument("vm", required=False)
@click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C.")
@asks_daemon
def status(vm: str | None, as_json: bool, watch: bool, **where: Path | None) -> None:
    """Show one VM, or all of this host."""

    async def once(client: DaemonClient) -> list[m.VmStatus]:
        return [await client.vm(vm)] if vm else await client.vms()

    if not watch:
        _print_status(ask(**where, what=once), as_json)
        return
    try:
        ask(**where, what=lambda client: _watch(client, once, as_json))
    except KeyboardInterrupt:
        raise click.exceptions.Exit(0) from None


def _print_status(found: list[m.VmStatus], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([one.model_dump() for one in found], indent=2))
        return
    from rich.console import Console

    from pycolo.host.tables import comparison_lines, status_table

    Console().print(status_table(found) if found else "no VM has a copy here")
    if len(found) == 1:
        for line in comparison_lines(found[0]):
            click.echo(line)


async def _watch(
    client: DaemonClient, once: Callable[[DaemonClient], Awaitable[list[m.VmStatus]]], as_json: bool
) -> None:
    from rich.live import Live

    from pycolo.host.tables import status_table

    if as_json:
        while True:
            click.echo(json.dumps([one.model_dump() for one in await once(client)]))
            await asyncio.sleep(WATCH_S)
    with Live(status_table(await once(client)), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(WATCH_S)
            live.update(status_table(await once(client)), refresh=True)


@click.command()
@click.argument("vm")
@click.option("--follow", "-f", is_flag=True, help="Go on as they happen, until Ctrl-C.")
@asks_daemon
def events(vm: str, follow: bool, **where: Path | None) -> None:
    """Show what happened to a VM, one JSON object a line."""

    async def show(client: DaemonClient) -> None:
        async for _, event in client.events(vm, follow=follow):
            click.echo(json.dumps(event))

    _until_interrupted(show, where)


@click.command()
@click.argument("vm")
@click.option("--follow", "-f", is_flag=True, help="Go on as it is written, until Ctrl-C.")
@asks_daemon
def logs(vm: str, follow: bool, **where: Path | None) -> None:
    """Show the log of a VM's copy on this host."""

    async def show(client: DaemonClient) -> None:
        offset = 0
        while True:
            part = await client.log(vm, offset)
            click.echo(part.text, nl=False)
            if part.text == "" and not follow:
                return
            if part.next == offset:
                await asyncio.sleep(WATCH_S / 2)
            offset = part.next

    _until_interrupted(show, where)


def _until_interrupted(show: Callable[[DaemonClient], Awaitable[None]], where: Where) -> None:
    try:
        ask(**where, what=show)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(0) from None


@click.command()
@click.argument("vm")
@click.option("--mib", type=click.IntRange(1, 4096), default=64, show_default=True, help="End it at this size.")
@click.option("--seconds", type=click.IntRange(1, 3600), default=60, show_default=True, help="End it after this time.")
@click.option("--out", type=click.Path(path_type=Path, readable=False), help="Move the capture into this new file.")
@asks_daemon
def capture(vm: str, mib: int, seconds: int, out: Path | None, **where: Path | None) -> None:
    """Record what the two copies of a VM put out, with verdicts, until the time is over or Ctrl-C."""
    from pycolo.host import capturing

    capturing.refuse_existing(out)
    request = m.CaptureRequest(mib=mib, seconds=seconds)
    begun = ask(**where, what=lambda client: client.start_capture(vm, request))
    click.echo(f"capturing {vm} into {begun.path} for up to {seconds} s; Ctrl-C ends it", err=True)
    running = capturing.Capturing(vm, begun)
    with suppress(KeyboardInterrupt):
        ask(**where, what=running.wait_for_end)
    ask(**where, what=running.stop)
    report = running.latest
    file = Path(report.path) if out is None else capturing.move(Path(report.path), out)
    for line in capturing.summary(report, file):
        click.echo(line)


@click.command("test-failover")
@click.argument("vm")
@asks_daemon
def test_failover(vm: str, **where: Path | None) -> None:
    """Let the primary on this host die, as for real; report what it cost."""

    async def prove(client: DaemonClient) -> None:
        cost = await client.test_failover(vm)
        click.echo(
            f"{cost.survivor} took over: nobody spoke for {cost.takeover_ms:.0f} ms, "
            f"protected again after {cost.protected_again_ms / 1000:.1f} s"
        )

    _interruptible(vm, prove, where)


@click.group()
def host() -> None:
    """See and drain hosts."""


@host.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@asks_daemon
def host_list(as_json: bool, **where: Path | None) -> None:
    """This host and its peers: what they offer, what is taken."""
    found = ask(**where, what=lambda client: client.hosts())
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    from rich.console import Console

    from pycolo.host.tables import host_table

    Console().print(host_table(found))


@host.command()
@click.argument("host_name", metavar="HOST")
@click.option("--undo", is_flag=True, help="Let it take copies again.")
@asks_daemon
def drain(host_name: str, undo: bool, **where: Path | None) -> None:
    """Take no new copies on this HOST, and move those that are there."""
    from pycolo.errors import WrongState

    async def act(client: DaemonClient) -> m.DrainAnswer:
        (this,) = [entry for entry in (await client.hosts()).hosts if entry.this]
        if this.name != host_name:
            raise WrongState(f"this is the daemon of {this.name}: run `colo host drain {host_name}` on that host")
        return await client.drain(undo=undo)

    answer = ask(**where, what=act)
    click.echo(f"{host_name} {'takes no new copies' if answer.draining else 'takes copies again'}")
    for vm, outcome in answer.outcomes.items():
        click.echo(f"  {vm}: {outcome}")


@click.group()
def token() -> None:
    """Tokens for clients of the API."""


@token.command("new")
@click.argument("token_file", type=click.Path(path_type=Path, readable=False))
@click.option("--scope", type=click.Choice(["read", "admin"]), default="read", show_default=True)
@click.option("--comment", default=lambda: os.environ.get("USER", ""), help="Whose it is.")
def token_new(token_file: Path, scope: str, comment: str) -> None:
    """Make a token, print it, and add its hash to TOKEN_FILE."""
    from pycolo.host.security import Scope, new_token

    click.echo(new_token(token_file, Scope(scope), " ".join(comment.split())))


COMMANDS: tuple[click.Command, ...] = (
    daemon,
    protect,
    _simple("unprotect", "Let a VM go on alone.", lambda c, vm: c.unprotect(vm), "{vm} runs alone"),
    _simple("stop", "Stop a VM for good, on both hosts.", lambda c, vm: c.stop(vm), "{vm} is stopped"),
    _simple("checkpoint", "Take a checkpoint now.", lambda c, vm: c.checkpoint(vm), "a checkpoint of {vm} is taken"),
    _simple("switchover", "Move the primary role to the partner.", lambda c, vm: c.switchover(vm), "{vm} has moved"),
    status,
    events,
    logs,
    capture,
    test_failover,
    host,
    token,
)

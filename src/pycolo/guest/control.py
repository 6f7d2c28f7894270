"""Commands to a running guest over its control port: each returns once the guest has answered, or says what failed."""

import socket
import sys

from pycolo.errors import EnvironmentFault

CONTROL_PORT = 9
ANSWER_S_MAX = 30.0


def sync(address: tuple[str, int]) -> None:
    """Return once all that the guest has written is on its disk."""
    _command(address, "sync")


def power_off(address: tuple[str, int]) -> None:
    """Make the guest stop PostgreSQL, unmount its disk and switch itself off; returns when it has begun to."""
    _command(address, "poweroff")


def reboot(address: tuple[str, int]) -> None:
    """Make the guest start again, without stopping its services; returns when it has begun to."""
    _command(address, "reboot")


def panic(address: tuple[str, int]) -> None:
    """Make the guest's kernel panic; returns when it has begun to."""
    _command(address, "panic")


def _command(address: tuple[str, int], command: str) -> None:
    try:
        with socket.create_connection(address, timeout=ANSWER_S_MAX) as connection:
            connection.sendall(f"{command}\n".encode())
            with connection.makefile("rb") as answers:
                answer = answers.readline(16)
    except OSError as error:
        raise EnvironmentFault(
            f"the guest at {address[0]}:{address[1]} can't be told to {command} ({error}); check that it runs."
        ) from error
    if answer != b"ok\n":
        raise EnvironmentFault(f"the guest answered {answer!r} to {command}; look at its console.")


def main(arguments: list[str]) -> int:
    """`python -m pycolo.guest.control ADDRESS PORT COMMAND`, for who has to enter the guest's network first."""
    host, port, command = arguments
    try:
        _command((host, int(port)), command)
    except EnvironmentFault as fault:
        sys.stderr.write(f"{fault}\n")
        return fault.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Who may ask this host for what.

On the unix socket: its owner, everything. Over TCP: another host, known by its certificate (or, without TLS, by its
configured address), only what hosts need of each other; whoever shows a token, as far as the token reaches.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import secrets
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from aiohttp import web

from pycolo.config import HostConfig
from pycolo.edge.peer_greeting import address
from pycolo.edge.tls import TlsFiles, certified_names, client_context, server_context
from pycolo.errors import EnvironmentFault

TOKEN_CHARS_MAX = 200
TOKEN_FILE_BYTES_MAX = 1 << 20


class Scope(enum.Enum):
    """What a route needs, and what somebody has: each of these includes nothing of the others but as `may` says."""

    PEER = "peer"  # another host
    READ = "read"
    ADMIN = "admin"


def may(has: Scope, needs: Scope, *, peers_too: bool) -> bool:
    """Whether somebody may use a route; `peers_too` marks those that hosts need of each other."""
    if has is Scope.PEER:
        return peers_too
    return has is Scope.ADMIN or needs is Scope.READ


@dataclass(frozen=True)
class Security:
    """How hosts and clients on the network prove who they are.

    `server` and `client` are the TLS contexts of both ends: `server` asks for a certificate without insisting (clients
    with a token have none), `client` checks the server's name. Without them nothing is served on the network, unless
    `insecure` says that the network itself is trusted.
    """

    server: ssl.SSLContext | None = None
    client: ssl.SSLContext | None = None
    insecure: bool = False
    files: TlsFiles | None = None

    @classmethod
    def of(cls, config: HostConfig) -> Self:
        """As host.toml says. Raises EnvironmentFault."""
        files = config.tls_files
        if files is None:
            return cls(insecure=True)
        server, client = server_context(files), client_context(files)
        server.verify_mode = ssl.CERT_OPTIONAL  # who shows a token needs no certificate
        client.check_hostname = True  # the name of the host that is called, not its address: see `Caller`
        return cls(server, client, files=files)

    def renew(self) -> None:
        """Read the certificates anew, for connections that are made from now on. Raises EnvironmentFault."""
        if self.files is not None:
            for context, fresh in ((self.server, server_context), (self.client, client_context)):
                assert context is not None
                fresh(self.files)  # says what is wrong with them before they are used
                context.load_cert_chain(self.files.cert, self.files.key, password=b"")


def certified_host(request: web.Request) -> frozenset[str]:
    """The names in the certificate that the caller has shown."""
    connection = None if request.transport is None else request.transport.get_extra_info("ssl_object")
    return frozenset() if connection is None else certified_names(connection)


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: nobody can use what stands in the file."""

    scope: Scope
    sha256: str


def load_tokens(path: Path | None) -> tuple[Token, ...]:
    """The tokens of a file with lines "SCOPE SHA256 [COMMENT]". Raises EnvironmentFault."""
    if path is None or not path.exists():
        return ()
    try:
        with open(path, "rb", opener=_opened) as file:
            return _tokens(path, file)
    except OSError as problem:
        raise EnvironmentFault(
            f"the tokens in {path} can't be read ({problem.strerror}): correct `token_file`"
        ) from None


def _tokens(path: Path, file: BinaryIO) -> tuple[Token, ...]:
    """What stands in a file that is one of ours, and that only its owner may use. Raises EnvironmentFault."""
    mode = os.fstat(file.fileno()).st_mode
    if mode & 0o077:
        raise EnvironmentFault(
            f"others than its owner may use {path} (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}, if it has tokens"
        )
    content = file.read(TOKEN_FILE_BYTES_MAX + 1)
    if len(content) > TOKEN_FILE_BYTES_MAX:
        raise EnvironmentFault(f"{path} has more than {TOKEN_FILE_BYTES_MAX} bytes: remove the tokens that nobody uses")
    lines = content.decode(errors="replace").splitlines()
    return tuple(_token(path, number, line) for number, line in enumerate(lines, 1) if line.strip())


def _token(path: Path, number: int, line: str) -> Token:
    scope, _, rest = line.strip().partition(" ")
    digest = rest.split(" ")[0]
    if scope not in ("read", "admin") or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise EnvironmentFault(
            f"line {number} of {path} is no token: name a file that `colo token new` has made, or one that is not there"
        )
    return Token(Scope(scope), digest)


def new_token(path: Path, scope: Scope, comment: str) -> str:
    """Make a token and add it to a file of tokens or a new one; only its hash is kept. Raises EnvironmentFault."""
    token = secrets.token_urlsafe(32)
    line = f"{scope.value} {hashlib.sha256(token.encode()).hexdigest()} {comment}".rstrip() + "\n"
    try:
        with open(path, "a+b", opener=_opened) as file:
            file.seek(0)
            _tokens(path, file)
            file.write(_line_end(file) + line.encode(errors="replace"))
    except OSError as problem:
        raise EnvironmentFault(f"{path} can't be written ({problem.strerror}): choose another file") from None
    return token


def _line_end(file: BinaryIO) -> bytes:
    """What is missing at the end of the last line."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _opened(path: str, flags: int) -> int:
    """Only a regular file, and a pipe that nobody uses must not stop us; a new file is its owner's alone."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise EnvironmentFault(f"{path} is no regular file, so it can't keep tokens: name another")
    return fd


class Door:
    """Decides who somebody on the network is."""

    def __init__(self, host: HostConfig, security: Security, tokens: tuple[Token, ...]) -> None:
        """Raises EnvironmentFault when a peer's address can't be looked up."""
        self._security, self._tokens = security, tokens
        self._names = {peer.name for peer in host.peers}
        self._by_address = _addresses(host) if security.insecure and security.server is None else {}

    def who(self, request: web.Request) -> tuple[Scope, str] | None:
        """What somebody may do, and the name of the host that it is; None for a stranger."""
        shown = request.headers.get("Authorization", "")
        if shown:
            scope = self._token(shown)
            return (scope, "") if scope is not None else None
        name = self._peer(request)
        return (Scope.PEER, name) if name is not None else None

    def _peer(self, request: web.Request) -> str | None:
        if self._security.server is None:
            return self._by_address.get(request.remote or "")
        names = certified_host(request) & self._names
        return min(names) if names else None

    def _token(self, shown: str) -> Scope | None:
        """All are compared, so that time tells nothing; without TLS anybody could overhear one, so none counts."""
        kind, _, token = shown.partition(" ")
        if self._security.server is None or kind != "Bearer" or not 0 < len(token) <= TOKEN_CHARS_MAX:
            return None
        digest = hashlib.sha256(token.encode()).hexdigest()
        fitting = [known.scope for known in self._tokens if hmac.compare_digest(known.sha256, digest)]
        return fitting[0] if fitting else None


def _addresses(host: HostConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    for peer in host.peers:
        name, port = address(peer.address)
        try:
            answers = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except OSError as problem:
            raise EnvironmentFault(
                f"the address {peer.address} of peer {peer.name} can't be looked up ({problem}): correct `peers`"
            ) from None
        found |= {str(answer[4][0]): peer.name for answer in answers}
    return found

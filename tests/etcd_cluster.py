"""A real etcd cluster of three members on the loopback: TLS both ways, users, and every fault a member can have.

Guarantees: `close` ends every member by its pid, also one that is frozen; nothing listens elsewhere than on 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from etcd_links import HOST_SUFFIX, PeerLinks
from pycolo.config import EtcdArbiterConfig
from pycolo.edge.arbiter import make_arbiter
from pycolo.edge.etcd import EtcdArbiter

MEMBERS = 3
HEALTHY_S_MAX = 20.0
ADMIN_S_MAX = 5.0
END_S_MAX = 5.0
PREFIX = "/pycolo-test"
USER, PASSWORD, ROOT_PASSWORD = "pycolo", "a secret of pycolo", "a secret of root"
HEARTBEAT_MS, ELECTION_MS = 100, 1000  # etcd's defaults
NICENESS = -10  # an arbiter has machines of its own: the guests that other tests run beside it must not starve it


@dataclass
class Member:
    """One etcd process, or the place of one."""

    name: str
    client_port: int
    peer_port: int
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False
    starts: int = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.client_port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL: as a loss of power, but for the page cache."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(END_S_MAX)
            self.process, self.frozen = None, False

    def freeze(self) -> None:
        """It keeps its sockets, accepts connections and never answers."""
        os.kill(self.pid, signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.frozen = False


@dataclass
class EtcdCluster:
    """Three members in `folder`, with the users root and pycolo; `auth_token` as etcd's option."""

    folder: Path
    auth_token: str = "simple"
    links: PeerLinks | None = None  # between the members, for tests that cut them
    members: list[Member] = field(default_factory=list)

    def start(self) -> None:
        """Make certificates, start all members, make the users."""
        self._make_certificates()
        self.password_file("password", PASSWORD)
        ports = _free_ports(2 * MEMBERS)
        self.members = [Member(f"m{number}", ports[2 * number], ports[2 * number + 1]) for number in range(MEMBERS)]
        for member in self.members:
            self.run(member)
        self.wait_healthy()
        self._make_users()

    def start_with_short_tokens(self, seconds: int) -> None:
        """As `start`, with tokens that expire; etcd 3.4 knows a lifetime for signed ones only."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.folder / "token.key").write_bytes(private)
        (self.folder / "token.pub").write_bytes(public)
        keys = f"pub-key={self.file('token.pub')},priv-key={self.file('token.key')}"
        self.auth_token = f"jwt,{keys},sign-method=RS256,ttl={seconds}s"
        self.start()

    def close(self) -> None:
        for member in self.members:
            member.kill()
        if self.links is not None:
            self.links.close()

    def run(self, member: Member) -> None:
        """Start a member, for the first time or again with its data."""
        member.starts += 1
        peers = ",".join(f"{one.name}={self._peer_url(one)}" for one in self.members)
        options = {
            "name": member.name,
            "data-dir": str(self.folder / member.name),
            "listen-client-urls": member.url,
            "advertise-client-urls": member.url,
            "listen-peer-urls": f"https://127.0.0.1:{member.peer_port}",
            "initial-advertise-peer-urls": self._peer_url(member),
            "initial-cluster": peers,
            "initial-cluster-token": str(self.folder),
            "initial-cluster-state": "new",
            "heartbeat-interval": str(HEARTBEAT_MS),
            "election-timeout": str(ELECTION_MS),
            "auth-token": self.auth_token,
            "logger": "zap",
            "log-level": "warn",
        }
        for side in ("", "peer-"):
            options |= {f"{side}cert-file": self.file("server.pem"), f"{side}key-file": self.file("server.key")}
            options |= {f"{side}trusted-ca-file": self.file("ca.pem"), f"{side}client-cert-auth": "true"}
        command = ["etcd", *(f"--{name}={value}" for name, value in options.items())]
        with (self.folder / f"{member.name}.log").open("ab") as log:
            environment = os.environ | (self.links.environment(member.name) if self.links else {})
            member.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        os.setpriority(os.PRIO_PROCESS, member.pid, NICENESS)

    def _peer_url(self, member: Member) -> str:
        host = f"{member.name}{HOST_SUFFIX}" if self.links else "127.0.0.1"
        return f"https://{host}:{member.peer_port}"

    def restart(self, member: Member) -> None:
        member.kill()
        self.run(member)
        self.wait_healthy()

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def password_file(self, name: str, password: str, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_text(password + "\n")
        path.chmod(mode)
        return path

    def config(self, first: Member | None = None, **changed: Any) -> EtcdArbiterConfig:
        """What host.toml would say; `first` is the endpoint that stands first."""
        members = sorted(self.members, key=lambda member: member is not first)
        values = {
            "kind": "etcd",
            "endpoints": [member.url for member in members],
            "prefix": PREFIX,
            "ca": self.file("ca.pem"),
            "cert": self.file("client.pem"),
            "key": self.file("client.key"),
            "user": USER,
            "password_file": self.file("password"),
        }
        return EtcdArbiterConfig.model_validate({**values, **changed})

    def arbiter(self, first: Member | None = None, **changed: Any) -> EtcdArbiter:
        """As a daemon would make it."""
        arbiter = make_arbiter(self.config(first, **changed))
        assert isinstance(arbiter, EtcdArbiter)
        return arbiter

    def leader(self) -> Member:
        """The member that leads now, as a majority sees it."""
        deadline_s = time.monotonic() + HEALTHY_S_MAX
        while time.monotonic() < deadline_s:
            votes: list[str] = []
            own: dict[str, Member] = {}
            for member in self._running():
                status = self._status(member)
                if status is not None:
                    own[status["header"]["member_id"]] = member
                    votes.append(status.get("leader", "0"))
            for candidate, member in own.items():
                if votes.count(candidate) > MEMBERS // 2:
                    return member
            time.sleep(0.05)
        raise TimeoutError(f"no leader in {HEALTHY_S_MAX} s: {self.logs()}")

    def follower(self) -> Member:
        leader = self.leader()
        return next(member for member in self._running() if member is not leader)

    def wait_healthy(self) -> None:
        """Until every running member answers with the same leader."""
        deadline_s = time.monotonic() + HEALTHY_S_MAX
        while time.monotonic() < deadline_s:
            statuses = [self._status(member) for member in self._running()]
            leaders = {status.get("leader", "0") if status else None for status in statuses}
            if len(leaders) == 1 and not leaders & {None, "0"}:
                return
            time.sleep(0.05)
        raise TimeoutError(f"etcd is not healthy in {HEALTHY_S_MAX} s: {self.logs()}")

    def heal(self) -> None:
        """All members run again."""
        for member in self.members:
            if member.frozen:
                member.thaw()
            if member.process is None:
                self.run(member)
        self.wait_healthy()

    def logs(self) -> str:
        """The end of what the members have said."""
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("m*.log")))

    def admin(self, path: str, question: dict[str, Any], token: str = "") -> dict[str, Any]:
        """Ask the first member that runs, with root's rights if `token` is root's."""
        return self._post(self._running()[0], path, question, token)

    def root_token(self) -> str:
        return str(self.admin("/v3/auth/authenticate", {"name": "root", "password": ROOT_PASSWORD})["token"])

    def put(self, key: str, value: str) -> None:
        """Write what no arbiter of ours would."""
        self.admin("/v3/kv/put", {"key": _base64(key), "value": _base64(value)}, self.root_token())

    def _running(self) -> list[Member]:
        return [member for member in self.members if member.process is not None and not member.frozen]

    def _status(self, member: Member) -> dict[str, Any] | None:
        try:
            return self._post(member, "/v3/maintenance/status", {}, "")
        except OSError:  # URLError and TimeoutError are some
            return None

    def _post(self, member: Member, path: str, question: dict[str, Any], token: str) -> dict[str, Any]:
        context = ssl.create_default_context(cafile=self.file("ca.pem"))
        context.load_cert_chain(self.file("client.pem"), self.file("client.key"))
        headers = {"Authorization": token} if token else {}
        request = urllib.request.Request(f"{member.url}{path}", json.dumps(question).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=ADMIN_S_MAX, context=context) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as problem:
            with problem:
                raise OSError(f"{path}: {problem.read().decode(errors='replace')}") from None

    def _make_users(self) -> None:
        self.admin("/v3/auth/user/add", {"name": "root", "password": ROOT_PASSWORD})
        self.admin("/v3/auth/user/grant", {"user": "root", "role": "root"})
        self.admin("/v3/auth/user/add", {"name": USER, "password": PASSWORD})
        self.admin("/v3/auth/role/add", {"name": USER})
        claims = {"permType": "READWRITE", "key": _base64(f"{PREFIX}/"), "range_end": _base64(f"{PREFIX}0")}
        self.admin("/v3/auth/role/grant", {"name": USER, "perm": claims})
        self.admin("/v3/auth/user/grant", {"user": USER, "role": USER})
        self.admin("/v3/auth/enable", {})

    def _make_certificates(self) -> None:
        ca, stranger = trustme.CA(), trustme.CA()
        ca.cert_pem.write_to_path(self.file("ca.pem"))
        stranger.cert_pem.write_to_path(self.file("other-ca.pem"))
        issued = {
            "server": ca.issue_cert("127.0.0.1", *(f"m{number}{HOST_SUFFIX}" for number in range(MEMBERS))),
            "client": ca.issue_cert("client.test"),
            "stranger": stranger.issue_cert("client.test"),
        }
        for name, certificate in issued.items():
            (self.folder / f"{name}.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
            certificate.private_key_pem.write_to_path(self.file(f"{name}.key"))


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses now; held together until all are known, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

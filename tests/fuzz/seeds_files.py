"""Seeds for the targets of files, of the programs beside us, and of HTTP."""

from __future__ import annotations

import base64
import gzip
import json

import msgspec

from capture_blocks import Blocks, pcap
from pycolo.agent import protocol
from pycolo.disk import protocol as disk_protocol
from tcp_frames import A, Connection, arp, udp

from .reader import piece_of
from .seeds_frames import Seeds, dialogue

# ---------------------------------------------------------------- files

HOST_TOML = b"""name = "h1"
state_dir = "/run/colo"
listen = "10.0.0.1:7700"
bridge = "br0"
cpus = 4
memory_mib = 1024
[arbiter]
kind = "etcd"
endpoints = ["https://10.0.0.1:2379"]
user = "colo"
password_file = "/k"
[networks]
lan = "br1"
[tls]
ca = "/k/ca"
cert = "/k/c"
key = "/k/k"
[[peers]]
name = "h2"
address = "[fd00::2]:7700"
"""
VM_TOML = b"""name = "web"
cpus = 2
memory_mib = 256
accel = "tcg"
kernel = "/k"
initrd = "/i"
append = "quiet"
[[nics]]
mac = "52:54:00:00:00:02"
[[nics]]
network = "lan"
[[disks]]
name = "root"
path = "root.img"
size_mib = 64
[protection]
heartbeat_ms = 50
secondaries = ["h2"]
[compare]
default = "compare"
http_date = [80, 8080]
[[compare.rules]]
protocol = "udp"
ports = "5000-5100"
verdict = "release"
"""


def host_toml() -> Seeds:
    yield "good", HOST_TOML
    yield (
        "file-arbiter",
        b'name = "h1"\nstate_dir = "/r"\nlisten = "h1:1"\nbridge = "b"\ninsecure = true\n'
        b'arbiter = {kind = "file", path = "/a"}',
    )
    yield "wrong", HOST_TOML.replace(b"4", b'"4"').replace(b"etcd", b"none")
    yield "no-toml", b"\xff\xfe" + HOST_TOML[:40]


def vm_toml() -> Seeds:
    yield "good", VM_TOML
    yield "twice", VM_TOML + b'[protection]\nx = 1979-05-27T07:32:00Z\n"a b" = inf'
    yield "open", VM_TOML + b'x = """'
    yield "deep", b"x = " + b"[" * 900


def values() -> Seeds:
    for model in range(11):
        yield f"model-{model}", bytes([model]) + bytes([0, 30, 1, 7, 2, 9, 3]) * 20
        yield f"odd-{model}", bytes([model]) + bytes([0, 30, 245, 1, 7, 130, 9, 241, 3, 250, 8]) * 20


def documents() -> Seeds:
    vm = {"name": "web", "kernel": "/k", "accel": "tcg"}
    host = {"name": "h1", "state_dir": "/r", "bridge": "b", "insecure": True, "arbiter": {"kind": "file", "path": "/a"}}
    copy = {"host": {**host, "listen": "10.0.0.1:0", "taps": ["t0"]}, "vm": vm, "role": "primary"}
    yield "copy", b"\0" + json.dumps(copy).encode()
    yield "record", b"\1" + json.dumps({"vm": vm, "role": "primary", "home": "h1"}).encode()
    yield "found-partner", b"\1" + json.dumps({"vm": vm, "role": "primary", "home": "h1", "partner": True}).encode()
    yield "tokens", b"\2admin " + b"ab" * 32 + b" someone\nread " + b"0f" * 32 + b"\n"
    yield "secret", b"\3pass-word\n"


def arbiter_file() -> Seeds:
    yield "arbiter", json.dumps({"vm": "web", "term": 2, "holder": "h2", "claim_id": "x"}).encode()
    yield "arbiter-own", json.dumps({"vm": "web", "term": 3, "holder": "h1", "ended": True}).encode()


def device_state() -> Seeds:
    timer = b"\x04\0\0\0\x05\x05timer" + bytes(4) + b"\0\0\0\x02" + (5 << 30).to_bytes(8) + bytes(8)
    timer += (2 << 30).to_bytes(8) + b"\x7e\0\0\0\x05"
    head = b"QEVM\0\0\0\3"
    yield "first", (1000).to_bytes(8) + head + timer
    yield "configured", (1 << 40).to_bytes(8) + head + b"\7\0\0\0\x0apc-q35-7.2" + timer + b"\x04rest"
    yield "twice", bytes(8) + head + timer + timer


def capture() -> Seeds:
    frames = [arp(), udp(b"x")]
    plain = pcap([(1, 2, frame, len(frame)) for frame in frames])
    yield "pcap", b"\1" + plain
    yield "pcap-big", b"\1" + pcap([(1, 2, arp(), 99)], order=">", magic=0xA1B23C4D)
    yield "zipped", b"\0" + plain
    yield "gzip", b"\1" + gzip.compress(plain, mtime=0)
    for order in "<>":
        blocks = Blocks(order)
        options = blocks.option(9, b"\x09") + blocks.option(14, bytes(8)) + blocks.option(2, b"eth0")
        head = blocks.section() + blocks.interface(options=options) + blocks.interface(link_type=113)
        body = blocks.packet(arp(), 5, options=blocks.option(2, b"\1\0\0\0")) + blocks.old_packet(arp(), 6)
        yield (
            f"pcapng-{'le' if order == '<' else 'be'}",
            b"\1" + head + body + blocks.simple(arp()) + blocks.packet(arp(), 7, 1),
        )


def comparison() -> Seeds:
    said = [(side, frame) for side, frame in dialogue() if side < 2]
    yield "dialogue", b"\0" + b"".join(bytes([side]) + piece_of(frame) for side, frame in said)
    differ = [
        (0, udp(b"one")),
        (1, udp(b"two")),
        (0, Connection().out(1, 1, A, b"a")),
        (1, Connection().out(1, 1, A, b"b")),
    ]
    yield "differs", b"\0" + b"".join(bytes([side]) + piece_of(frame) for side, frame in [*said[:4], *differ])
    one = pcap([(1, 2, udp(b"one"), 60)])
    yield "raw", b"\1" + piece_of(one) + one.replace(b"one", b"two")


# ---------------------------------------------------------------- neighbours


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


def qmp() -> Seeds:
    """What QEMU says to one command after the other."""

    def said(what: int, *pieces: list[object]) -> bytes:
        return bytes([what]) + b"".join(piece_of(b"".join(map(_line, lines))) for lines in pieces)

    def done(number: int, value: object) -> object:
        return {"return": value, "id": number}

    def event(name: str, **data: object) -> object:
        return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}

    def job(*statuses: str) -> list[object]:
        return [event("JOB_STATUS_CHANGE", id="none-such", status=status) for status in statuses]

    jobs = [{"id": "none-such", "error": "Snapshot 'none-such' does not exist in one or more devices"}]
    reset = event("RESET", guest=False, reason="host-qmp-system-reset")
    stopped = [*job("created", "running"), done(2, {}), *job("aborting", "concluded")]
    yield "status", said(0, [done(2, {"status": "running", "running": True})])
    yield "load", said(1, stopped, [done(3, jobs)], [done(4, {})], [done(5, {}), reset])
    yield "loaded", said(1, [done(2, {}), *job("concluded")], [done(3, {})], [done(4, {}), reset])
    yield "vcpus", said(2, [done(2, [{"thread-id": 7}])])
    yield "refused", said(0, [{"error": {"class": "GenericError", "desc": "no"}, "id": 2}])
    yield "ended", said(3, [{"event": "SHUTDOWN", "data": {"guest": True}}, {"error": {"desc": "no"}, "id": 2}])
    yield "event-without-data", said(3, [{"event": "SHUTDOWN", "timestamp": {}}, done(2, {})])
    yield "long-number", said(0, [{"event": "X", "timestamp": {"seconds": 10**400}}])


def qmp_answers() -> Seeds:
    shutdown = {"event": "SHUTDOWN", "data": {"guest": True}, "timestamp": {}}
    for number, answer in enumerate([{"status": "paused"}, [{"id": "job-1", "error": "no"}], [{"thread-id": 7}], {}]):
        said = [
            json.dumps(each).encode() for each in (answer, shutdown, {"event": "JOB_STATUS_CHANGE", "data": {}}, answer)
        ]
        yield f"answer-{number}", bytes([number]) + b"".join(map(piece_of, said))
    yield "no-data", b"\3" + piece_of(b'{"event": "SHUTDOWN"}') + piece_of(b'{"event": "JOB_STATUS_CHANGE"}')


def etcd() -> Seeds:
    def said(*bodies: object) -> bytes:
        return b"".join(b"\0" + piece_of(json.dumps(body).encode()) for body in bodies)

    header = {"header": {"cluster_id": "7"}}
    value = base64.b64encode(json.dumps({"vm": "web", "term": 2, "holder": "h2"}).encode()).decode()
    pair = {"key": base64.b64encode(b"/pycolo/claims/web").decode(), "mod_revision": "5", "value": value}
    found, won = {**header, "kvs": [pair]}, {**header, "succeeded": True}
    lost = {**header, "responses": [{"response_range": {"kvs": [pair]}}]}
    yield "granted", bytes([0, 0]) + said(found, won)
    yield "lost", bytes([0, 0]) + said(found, lost, lost, lost, won)
    yield "record", bytes([1, 0]) + said(found)
    yield "ended", bytes([2, 0]) + said({**header, "kvs": []}, won)
    yield "user", bytes([0, 1]) + said({**header, "token": "t"}, found, won)
    refused = b"\4" + piece_of(b'{"message": "etcdserver: invalid auth token pass-word-of-etcd"}')
    yield (
        "refused",
        bytes([0, 1]) + said({**header, "token": "t"}) + refused + said({**header, "token": "u"}, found, won),
    )


def _commands() -> list[tuple[int, msgspec.Struct]]:
    terms = protocol.Terms(1, [(17, 5000, 5100, 0)], [("http-date", [80])], True)
    start = protocol.Start(
        "primary", (protocol.Port("52:54:00:00:00:02", "t0", "br0"),), "::1", "t", 50, 1000, 180.0, terms, None
    )
    opening = disk_protocol.Open(
        "primary", [disk_protocol.DiskFile("r", "/r", 0, "raw")], "/s", "::1", "t", None, 1, 1, 1, 1, 1, True
    )
    return [
        *((0, start), (0, protocol.Connect("h", 1, "t", "h2", None)), (0, protocol.StartFeed(3, 5))),
        *((1, protocol.Stats(lag_ms=1.5)), (1, protocol.Failed("why", "peer")), (1, protocol.Wanted("late"))),
        *((2, opening), (3, disk_protocol.Opened(1, [5])), (3, disk_protocol.Trouble("why", True))),
    ]


def processes() -> Seeds:
    for which, each in _commands():
        yield type(each).__name__.lower(), bytes([which]) + msgspec.msgpack.encode(each)


def child() -> Seeds:
    for which, each in _commands():
        if which & 1:
            yield type(each).__name__.lower(), bytes([which >> 1]) + piece_of(msgspec.msgpack.encode(each))
    yield "found-not-understood", b"\0" + piece_of(b"\xc1")
    yield "found-unknown-cause", b"\0" + piece_of(msgspec.msgpack.encode(protocol.Failed("why", "who knows")))


# ---------------------------------------------------------------- HTTP


def requests() -> Seeds:
    vm = {"name": "web", "kernel": "/k", "accel": "tcg"}
    offer = {"offer": "ab" * 16, "vm": vm, "primary": "h2", "home": "h2", "term": 1}
    bodies: dict[int, object] = {2: {}, 4: {"vm": vm}, 7: {}, 8: {"mib": 1}, 14: {}, 18: offer}
    for route in range(22):
        body = json.dumps(bodies[route]).encode() if route in bodies else b""
        yield f"owner-{route}", bytes([route, 0, 0, 0, 0, 0, 0]) + body
        yield f"network-{route}", bytes([route, 0, 0, 0, 1, 0, 1]) + body
    yield "offset", bytes([17, 0, 0, 2, 0, 0, 9, 0, 0, 0])


def copy_requests() -> Seeds:
    bodies = {3: {"address": "h2:1"}, 5: {"term": "4"}, 6: {"reason": "x"}, 8: {"reason": "x"}, 9: {"limits": "64 60"}}
    for route in range(12):
        yield f"route-{route}", bytes([route, 0, 0]) + json.dumps(bodies.get(route, {})).encode()
    yield "found-charset", bytes([3, 0, 2]) + b"text/plain; charset=none".ljust(40) + b'{"address": ""}'
    yield "found-nested", bytes([3, 0, 0]) + b"[" * 3900


def answers() -> Seeds:
    report = {"name": "h2", "version": "1", "cpus": 1, "memory_mib": 1, "cpus_used": 0, "memory_mib_used": 0}
    report |= {"draining": False, "vms": []}
    for number, body in enumerate([report, {"hosts": []}, {"error": "no", "status": 21}, {"done": True}]):
        yield f"answer-{number}", bytes([number, 0, 0]) + json.dumps(body).encode()
    yield "failure", bytes([0, 4, 0]) + b'{"error": "no", "status": 21}'
    yield "events", bytes([0, 0, 1]) + b'id: 00000000-1\nevent: running\ndata: {"kind": "running"}\n\n: nothing new\n\n'
    yield "found-event", bytes([0, 0, 1]) + b"id: 1\ndata: {\n\n"

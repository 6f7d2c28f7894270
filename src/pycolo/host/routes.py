"""The routes of the API v1: the one table from which both the server and the OpenAPI document are made."""

from __future__ import annotations

from dataclasses import dataclass

from pycolo.host import models as m
from pycolo.host.security import Scope

JSON = "application/json"
EVENTS = "text/event-stream"
METRICS = "text/plain"


@dataclass(frozen=True)
class Query:
    """A parameter of the query: whole numbers from 0, or true and false."""

    name: str
    kind: str
    meaning: str


@dataclass(frozen=True)
class Route:
    """One operation; `name` is the method that carries it out, `peers_too` that other hosts may ask for it."""

    method: str
    path: str
    name: str
    summary: str
    needs: Scope
    answer: type[m.Body] | None = None
    body: type[m.Body] | None = None
    peers_too: bool = False
    content_type: str = JSON
    query: tuple[Query, ...] = ()


_READ, _ADMIN = Scope.READ, Scope.ADMIN
_FOLLOW = Query("follow", "boolean", "false: end after what has happened so far")
_OFFSET = Query("offset", "integer", "byte from which to read")

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/host", "host", "What this host offers and runs", _READ, m.HostReportBody, peers_too=True),
    Route("GET", "/v1/hosts", "hosts", "This host and its peers", _READ, m.HostList),
    Route("POST", "/v1/host/drain", "drain", "Move all copies elsewhere", _ADMIN, m.DrainAnswer, m.DrainRequest),
    Route("GET", "/v1/vms", "vms", "All VMs of this host", _READ, m.VmList),
    Route("POST", "/v1/vms", "protect", "Start a VM here and protect it", _ADMIN, m.VmStatus, m.ProtectRequest),
    Route("GET", "/v1/vms/{name}", "vm", "One VM", _READ, m.VmStatus),
    Route("DELETE", "/v1/vms/{name}", "stop", "Stop a VM for good", _ADMIN, m.Done),
    Route("POST", "/v1/vms/{name}/checkpoint", "checkpoint", "Take one now", _ADMIN, m.Done, m.CheckpointRequest),
    Route(
        "POST",
        "/v1/vms/{name}/capture",
        "start_capture",
        "Record the frames of both copies",
        _ADMIN,
        m.CaptureReport,
        m.CaptureRequest,
    ),
    Route("GET", "/v1/vms/{name}/capture", "capture", "The newest capture", _READ, m.CaptureReport),
    Route("DELETE", "/v1/vms/{name}/capture", "stop_capture", "End the capture", _ADMIN, m.CaptureReport),
    Route("POST", "/v1/vms/{name}/unprotect", "unprotect", "Let the VM go on alone", _ADMIN, m.Done),
    Route("POST", "/v1/vms/{name}/switchover", "switchover", "Move the primary role to the partner", _ADMIN, m.Done),
    Route(
        "POST",
        "/v1/vms/{name}/test-failover",
        "test_failover",
        "Prove that the partner takes over",
        _ADMIN,
        m.FailoverCost,
    ),
    Route("POST", "/v1/vms/{name}/peer-lost", "peer_lost", "The partner is dead", _ADMIN, m.Done, m.PeerLostRequest),
    Route("POST", "/v1/vms/{name}/heartbeat", "heartbeat", "The partner lives", _ADMIN, m.HeartbeatAnswer),
    Route(
        "GET", "/v1/vms/{name}/events", "events", "Events as they happen", _READ, content_type=EVENTS, query=(_FOLLOW,)
    ),
    Route("GET", "/v1/vms/{name}/log", "log", "What the copy's process has said", _READ, m.LogPart, query=(_OFFSET,)),
    Route(
        "POST", "/v1/offers", "offer", "Hold a secondary copy", _ADMIN, m.OfferAnswer, m.OfferRequest, peers_too=True
    ),
    Route("DELETE", "/v1/offers/{offer}", "withdraw", "End a secondary copy", _ADMIN, m.Done, peers_too=True),
    Route("GET", "/metrics", "metrics", "For Prometheus", _READ, content_type=METRICS),
    Route("GET", "/v1/openapi.json", "openapi", "This document", _READ),
)

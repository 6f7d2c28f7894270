"""Who may talk to us, and how we prove who we are: TLS 1.3, with a certificate of the same CA on both sides.

Guarantees: nothing older than TLS 1.3 is spoken; nobody without a certificate of the CA gets or says a byte of payload;
a failure names files and reasons, never what is in a key. The peer's host name is checked by whoever knows it, against
`certified_names`: addresses and name servers prove nothing here.
"""

from __future__ import annotations

import os
import ssl
import stat
from typing import NamedTuple

import msgspec

from pycolo.errors import EnvironmentFault, PeerUntrusted, PeerViolation

REMEDY = "make certificates with `colo pki init` and `colo pki issue`, and name them in the table [tls] of host.toml"
ANEW = "issue it anew (`colo pki issue`) with the CA that `tls.ca` names on both hosts"


class TlsFiles(msgspec.Struct, frozen=True):
    """Paths of PEM files: the certificates of the CAs that we trust, this host's certificate, and its key."""

    ca: str
    cert: str
    key: str


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For who calls. The files are read anew, so that a renewed certificate counts. Raises EnvironmentFault."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a host is known by the name that it says and has a certificate for
    return _prepared(context, files)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For who listens; as `client_context`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a session is never resumed: each proves anew who it is
    return _prepared(context, files)


def _prepared(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    if fault := mode_fault(files.key):
        raise EnvironmentFault(fault)
    return _loaded(context, files)


def _loaded(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cafile=files.ca)
    except ssl.SSLError as problem:
        raise EnvironmentFault(f"{files.ca} is no CA certificate ({_reason(problem)}): {REMEDY}") from None
    except OSError as problem:
        raise EnvironmentFault(f"{files.ca} can't be read ({problem.strerror}): {REMEDY}") from None
    try:
        context.load_cert_chain(files.cert, files.key, password=b"")  # an encrypted key is refused, not asked about
    except ssl.SSLError as problem:
        raise EnvironmentFault(
            f"{files.cert} and {files.key} are no certificate with its key in clear ({_reason(problem)}): {REMEDY}"
        ) from None
    except OSError as problem:
        closed = [path for path in (files.cert, files.key) if not os.access(path, os.R_OK)]
        which = " and ".join(closed) or f"{files.cert} or {files.key}"
        raise EnvironmentFault(f"{which} can't be read ({problem.strerror}): {REMEDY}") from None
    return context


def mode_fault(key: str) -> str:
    """What is wrong with who may read a key; "" if only its owner may, or nothing can be told."""
    try:
        mode = stat.S_IMODE(os.stat(key).st_mode)
    except OSError:
        return ""
    return f"{key} is open to others than its owner (mode {mode:04o}): run `chmod 600 {key}`" if mode & 0o077 else ""


class Refusal(NamedTuple):
    """Why a certificate is not accepted: OpenSSL's X509_V_ERR_..., 0 for another reason, and its words."""

    code: int
    reason: str


def why_not_accepted(files: TlsFiles) -> Refusal | None:
    """Why a host with the same `ca` would not accept this host's certificate, found by a handshake with ourselves.

    The mode of the key is not looked at. Raises EnvironmentFault when the files can't be loaded.
    """
    calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    calling.check_hostname = False
    listening = _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _loaded(calling, files).wrap_bio(back, there)
    server = listening.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):  # each says what it has to say, and hears what was said
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as problem:
            return Refusal(problem.verify_code, problem.verify_message)
        except ssl.SSLError as problem:
            return Refusal(0, _reason(problem))
    return None


def certified_names(connection: ssl.SSLObject | ssl.SSLSocket) -> frozenset[str]:
    """The host names that the peer's certificate is for (RFC 5280, subjectAltName, DNS names); after the handshake."""
    certificate = connection.getpeercert() or {}
    return frozenset(str(entry[1]) for entry in certificate.get("subjectAltName", ()) if entry[0] == "DNS")


def handshake_failure(who: str, error: ssl.SSLError) -> PeerUntrusted:
    """What it means that no handshake came about with `who` ("the secondary at 10.0.0.2:7700"), with the remedy."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return PeerUntrusted(f"the certificate of {who} is not accepted ({error.verify_message}): {ANEW}")
    if "ALERT" in (error.reason or ""):
        return _not_accepted(who, error)
    return PeerUntrusted(f"{who} does not speak TLS 1.3 with a certificate ({_reason(error)}): {REMEDY}")


def failure(who: str, error: ssl.SSLError) -> PeerViolation:
    """As `handshake_failure`, after our part of it: the peer may not have accepted us, or what came is not its."""
    if "ALERT" in (error.reason or ""):
        return _not_accepted(who, error)
    return PeerViolation(f"{who} broke the TLS connection ({_reason(error)})")


def _not_accepted(who: str, error: ssl.SSLError) -> PeerUntrusted:
    return PeerUntrusted(f"{who} does not accept our certificate ({_reason(error)}): {ANEW}")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unknown reason").replace("_", " ").lower()

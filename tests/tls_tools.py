"""What the tests of TLS share: certificates of every kind, and clients that are not what they should be."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from unittest import mock

from pycolo.edge.tls import TlsFiles, client_context
from pycolo.pki import authority


class Pki:
    """A CA, and certificates of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority.init_authority(folder)

    def files(self, host: str) -> TlsFiles:
        """A good certificate, made at the first call."""
        if not (self.folder / f"{host}.crt").exists():
            authority.issue(self.folder, host, self.folder)
        return self._files(host, self.folder)

    def expired(self, host: str) -> TlsFiles:
        """A certificate that was good until yesterday."""
        with mock.patch.object(authority, "CLOCK_SKEW", timedelta(days=3)):
            authority.issue(self.folder, host, self.folder / "expired", days=-1)
        return self._files(host, self.folder / "expired")

    def of_another_ca(self, host: str) -> TlsFiles:
        """A certificate that claims the name, from a CA that nobody here knows; it trusts ours."""
        authority.init_authority(self.folder / "other")
        authority.issue(self.folder / "other", host, self.folder / "other")
        return self._files(host, self.folder / "other")

    def _files(self, host: str, folder: Path) -> TlsFiles:
        return TlsFiles(str(self.folder / "ca.crt"), str(folder / f"{host}.crt"), str(folder / f"{host}.key"))


def old_client(files: TlsFiles) -> ssl.SSLContext:
    """Speaks nothing newer than TLS 1.2."""
    context = client_context(files)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def nameless_client(files: TlsFiles) -> ssl.SSLContext:
    """Shows no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files.ca)
    return context


INTRUDERS: dict[str, tuple[Callable[[Pki], ssl.SSLContext], str]] = {
    "another CA": (lambda pki: client_context(pki.of_another_ca("h1")), "unable to get local issuer certificate"),
    "expired": (lambda pki: client_context(pki.expired("h1")), "certificate has expired"),
    "no certificate": (lambda pki: nameless_client(pki.files("h1")), "peer did not return a certificate"),
    "TLS 1.2": (lambda pki: old_client(pki.files("h1")), "unsupported protocol"),
}
"""Who is not let in, and what is said of it."""

"""A small CA: one key that signs, and a certificate for each host that names it.

Guarantees: nothing is ever overwritten; keys are readable for their owner alone from the moment they exist, and are
never part of a message.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pycolo.config_values import HOST_NAME
from pycolo.edge.tls import ANEW, REMEDY, Refusal, TlsFiles, mode_fault, server_context, why_not_accepted
from pycolo.errors import EnvironmentFault

CA_DAYS = 3650
HOST_DAYS = 730
NO_SIGNER = (18, 19, 20, 21)  # X509_V_ERR_... of OpenSSL: self-signed, or a chain without an end that is trusted
TOO_EARLY_OR_LATE = (9, 10)
CLOCK_SKEW = timedelta(hours=1)  # hosts whose clocks differ agree that a new certificate is valid


class Issued(NamedTuple):
    """The files of one host."""

    cert: Path
    key: Path


def init_authority(folder: Path) -> Path:
    """Make ca.crt and ca.key; returns the certificate's path. Raises EnvironmentFault."""
    cert, key = folder / "ca.crt", folder / "ca.key"
    _refuse_to_overwrite(cert, key)
    private = ec.generate_private_key(ec.SECP256R1())
    # A name of its own, so that two CAs are never taken for each other.
    name = _name(f"pycolo CA {os.urandom(4).hex()}")
    public = private.public_key()
    certificate = (
        _builder(name, name, public, datetime.now(UTC) + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(private, hashes.SHA256())
    )
    _write_pair(cert, key, certificate, private)
    return cert


def issue(folder: Path, host: str, out: Path, days: int = HOST_DAYS) -> Issued:
    """Make HOST.crt and HOST.key in `out`, signed by the CA in `folder`. Raises EnvironmentFault."""
    if not re.fullmatch(HOST_NAME, host):
        raise EnvironmentFault(f"{host!r} can't be the name of a host: use the `name` of its host.toml")
    issued = Issued(out / f"{host}.crt", out / f"{host}.key")
    _refuse_to_overwrite(*issued)
    authority, signing_key = _load_authority(folder)
    ends_at = datetime.now(UTC) + timedelta(days=days)
    if ends_at > authority.not_valid_after_utc:
        left = (authority.not_valid_after_utc - datetime.now(UTC)).days
        raise EnvironmentFault(
            f"the CA in {folder} ends in {left} days, before {days} days are over: give fewer --days"
        )
    private = ec.generate_private_key(ec.SECP256R1())
    both_ways = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    signer = signing_key.public_key()
    certificate = (
        _builder(_name(host), authority.subject, private.public_key(), ends_at)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_ways), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
        .sign(signing_key, hashes.SHA256())
    )
    _write_pair(*issued, certificate, private)
    return issued


def check_own_certificate(files: TlsFiles, host: str) -> None:
    """Whether the files are what this host needs, before anybody calls. Raises EnvironmentFault."""
    server_context(files)
    for fault in (_host_fault(files.cert, host), time_fault(files.cert)):
        if fault:
            raise EnvironmentFault(fault)


def certificate_faults(files: TlsFiles, host: str) -> list[str]:
    """All that is wrong with the files of this host, also whether other hosts will accept its certificate."""
    try:
        refusal = why_not_accepted(files)
        faults = [_host_fault(files.cert, host), time_fault(files.cert)]
    except EnvironmentFault as problem:
        refusal, faults = None, [str(problem)]
    if refusal is not None and not (refusal.code in TOO_EARLY_OR_LATE and faults[1]):
        faults.append(_refusal(files, refusal))
    return [fault for fault in (mode_fault(files.key), *faults) if fault]


def _refusal(files: TlsFiles, refusal: Refusal) -> str:
    if refusal.code in NO_SIGNER:
        return f"{files.cert} is not signed by a CA in {files.ca}: name the one that signed it, or {ANEW}"
    return f"other hosts won't accept {files.cert} with the CA in {files.ca} ({refusal.reason}): {ANEW}"


def _host_fault(cert: str, host: str) -> str:
    """What is wrong with the name that a certificate is for; "" if nothing is. Raises EnvironmentFault."""
    try:
        names = _load_certificate(cert).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    found = names.get_values_for_type(x509.DNSName)
    if host in found:
        return ""
    return (
        f"{cert} is for {', '.join(found) or 'no host'}, and this host's `name` is {host}: "
        f"issue one for it with `colo pki issue`"
    )


def time_fault(cert: str) -> str:
    """What is wrong with the time in which a certificate is valid; "" if nothing is. Raises EnvironmentFault."""
    certificate = _load_certificate(cert)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if first <= datetime.now(UTC) <= last:
        return ""
    return (
        f"{cert} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}: "
        f"set the clock, or issue another with `colo pki issue`"
    )


def _load_certificate(cert: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(Path(cert).read_bytes())
    except OSError as problem:
        raise EnvironmentFault(f"{cert} can't be read ({problem.strerror}): {REMEDY}") from None
    except ValueError as problem:
        raise EnvironmentFault(f"{cert} is no certificate ({problem}): {REMEDY}") from None


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    _refuse_a_file(folder)
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except OSError as problem:
        raise EnvironmentFault(
            f"{problem.filename} can't be read ({problem.strerror}): make a CA with `colo pki init {folder}`"
        ) from None
    except (ValueError, TypeError):  # TypeError: it wants a password
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise EnvironmentFault(
            f"{folder} has no ca.crt and ca.key as `colo pki init` makes them: name the folder of your CA"
        )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, ends_at: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCK_SKEW)
        .not_valid_after(ends_at)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _refuse_to_overwrite(*paths: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise EnvironmentFault(f"{path} is there already: move it away if you mean to replace it")


def _refuse_a_file(folder: Path) -> None:
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise EnvironmentFault(f"{folder} is a file, and a folder is needed: name another")


def _write_pair(cert: Path, key: Path, certificate: x509.Certificate, private: ec.EllipticCurvePrivateKey) -> None:
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _make_folder(cert.parent)
    try:
        _write_new(key, secret, 0o600)
        _write_new(cert, certificate.public_bytes(pem), 0o644)
    except OSError as problem:
        raise EnvironmentFault(
            f"{problem.filename} can't be written ({problem.strerror}): name a folder that can be written"
        ) from None


def _make_folder(folder: Path) -> None:
    """Only the last part: what is missing above it may be a misspelling."""
    _refuse_a_file(folder)
    if not os.path.isdir(folder.absolute().parent):
        raise EnvironmentFault(
            f"there is no folder {folder.parent} in which {folder.name} could be made: "
            f"correct the path, or `mkdir -p {folder.parent}`"
        )
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as problem:
        raise EnvironmentFault(
            f"the folder {folder} can't be made ({problem.strerror}): name one that can be written"
        ) from None


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)

"""`colo pki`: what it makes, what it refuses, and that keys stay with their owner."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pycolo.edge.tls import TlsFiles, client_context, server_context
from pycolo.errors import EnvironmentFault
from pycolo.pki.authority import check_own_certificate, init_authority, issue
from tls_tools import Pki


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def load(path: Path | str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def test_what_a_host_gets(pki: Pki) -> None:
    files = pki.files("Host_1.a-b")
    certificate, authority = load(files.cert), load(files.ca)
    certificate.verify_directly_issued_by(authority)
    assert [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["Host_1.a-b"]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["Host_1.a-b"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    lasts = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=729) < lasts <= timedelta(days=730)
    check_own_certificate(files, "Host_1.a-b")


def test_keys_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pki = Pki(tmp_path / "pki")
        pki.files("h1")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in pki.folder.iterdir()} == {
        "ca.crt": 0o644,
        "ca.key": 0o600,
        "h1.crt": 0o644,
        "h1.key": 0o600,
    }


def test_nothing_is_overwritten(pki: Pki) -> None:
    pki.files("h1")
    before = {path: path.read_bytes() for path in pki.folder.iterdir()}
    with pytest.raises(EnvironmentFault, match=r"ca.crt is there already: move it away"):
        init_authority(pki.folder)
    with pytest.raises(EnvironmentFault, match=r"h1.crt is there already: move it away"):
        issue(pki.folder, "h1", pki.folder)
    (pki.folder / "h1.crt").unlink()
    with pytest.raises(EnvironmentFault, match=r"h1.key is there already: move it away"):
        issue(pki.folder, "h1", pki.folder)
    assert {path: before[path] for path in pki.folder.iterdir()} == {p: p.read_bytes() for p in pki.folder.iterdir()}


@pytest.mark.parametrize("host", ["", "-h", "a b", "../x", "a/b", "h1\n", "h" * 64, "é"])
def test_a_name_that_host_toml_would_not_take(pki: Pki, host: str) -> None:
    with pytest.raises(EnvironmentFault, match="can't be the name of a host"):
        issue(pki.folder, host, pki.folder)


def test_a_certificate_does_not_outlive_its_ca(pki: Pki) -> None:
    with pytest.raises(EnvironmentFault, match="give fewer --days"):
        issue(pki.folder, "h1", pki.folder, days=3651)


def test_a_folder_without_a_ca(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="make a CA with `colo pki init "):
        issue(tmp_path, "h1", tmp_path)
    Pki(tmp_path / "a")
    Pki(tmp_path / "b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    (tmp_path / "b" / "ca.key").write_text("no key")
    for name in ("a", "b"):
        with pytest.raises(EnvironmentFault, match=r"has no ca.crt and ca.key as `colo pki init` makes them"):
            issue(tmp_path / name, "h1", tmp_path)


def test_the_commands(tmp_path: Path) -> None:
    folder, out = tmp_path / "pki", tmp_path / "out"
    assert f"{folder}/ca.crt is the CA" in colo("init", folder)
    assert f"{out}/h1.crt and {out}/h1.key are for h1" in colo("issue", folder, "h1", "--out", out, "--days", "9")
    check_own_certificate(TlsFiles(f"{folder}/ca.crt", f"{out}/h1.crt", f"{out}/h1.key"), "h1")


@pytest.mark.parametrize("above", ["no/such", "file"])
def test_what_is_missing_above_a_folder_is_not_made(pki: Pki, tmp_path: Path, above: str) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / above / "x"
    says = rf"there is no folder {out.parent} in which x could be made: correct the path, or `mkdir -p {out.parent}`"
    with pytest.raises(EnvironmentFault, match=says):
        issue(pki.folder, "h1", out)
    with pytest.raises(EnvironmentFault, match=says):
        init_authority(out)
    assert not (tmp_path / "no").exists()


def test_a_file_where_a_folder_is_needed(pki: Pki, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for act in (
        lambda: init_authority(file),
        lambda: issue(pki.folder, "h1", file),
        lambda: issue(file, "h1", tmp_path),
    ):
        with pytest.raises(EnvironmentFault, match=f"{file} is a file, and a folder is needed: name another"):
            act()
    assert file.read_text() == "mine"


def test_a_folder_that_can_not_be_made() -> None:
    with pytest.raises(
        EnvironmentFault, match=r"the folder /proc/pki can't be made \(.*\): name one that can be written"
    ):
        init_authority(Path("/proc/pki"))


def colo(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "pycolo", "pki", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


# ---------------------------------------------------------------- at the start of a daemon


def test_a_certificate_of_another_host(pki: Pki) -> None:
    with pytest.raises(EnvironmentFault, match=r"h2.crt is for h2, and this host's `name` is h1: issue one for it"):
        check_own_certificate(pki.files("h2"), "h1")


def test_a_certificate_that_has_expired(pki: Pki) -> None:
    with pytest.raises(EnvironmentFault, match=r"h1.crt is valid from .* to .*: set the clock, or issue another"):
        check_own_certificate(pki.expired("h1"), "h1")


def test_a_ca_is_no_host(pki: Pki) -> None:
    folder = pki.folder
    files = TlsFiles(f"{folder}/ca.crt", f"{folder}/ca.crt", f"{folder}/ca.key")
    with pytest.raises(EnvironmentFault, match=r"ca.crt is for no host, and this host's `name` is h1"):
        check_own_certificate(files, "h1")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read(pki: Pki, mode: int) -> None:
    files = pki.files("h1")
    os.chmod(files.key, mode)
    for make in (client_context, server_context):
        with pytest.raises(EnvironmentFault, match=rf"\(mode {mode:04o}\): run `chmod 600 {files.key}`"):
            make(files)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
)
def test_files_that_will_not_do(pki: Pki, name: str, content: bytes | None) -> None:
    files = pki.files("h1")
    path = Path(getattr(files, name))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(EnvironmentFault, match=rf"{path.name}.*: make certificates with `colo pki init`") as caught:
        client_context(files)
    assert "AAAA" not in str(caught.value)


def test_the_file_that_is_missing_is_named_alone(pki: Pki) -> None:
    files = pki.files("h1")
    Path(files.key).unlink()
    with pytest.raises(EnvironmentFault, match=rf"^{files.key} can't be read \(No such file"):
        client_context(files)


def test_another_hosts_key(pki: Pki) -> None:
    first, second = pki.files("h1"), pki.files("h2")
    with pytest.raises(EnvironmentFault, match=r"are no certificate with its key in clear \(key values mismatch\)"):
        client_context(TlsFiles(first.ca, first.cert, second.key))


def test_an_encrypted_key_is_refused_and_nobody_is_asked(pki: Pki, capfd: pytest.CaptureFixture[str]) -> None:
    files = pki.files("h1")
    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), password=None)
    secret = serialization.BestAvailableEncryption(b"secret")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    Path(files.key).write_bytes(key.private_bytes(pem, pkcs8, secret))
    with pytest.raises(EnvironmentFault, match="are no certificate with its key in clear"):
        client_context(files)
    assert capfd.readouterr().out == ""

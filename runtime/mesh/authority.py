"""The mesh's own certificate authority: its key in a folder, and beside it whom to trust and what it issued.

A mesh that runs needs its issued files and ca.pem; ca.key may be kept elsewhere.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.domain.identity import MEMBERS, Caller, Role, name_of, named, server_name
from runtime.errors import ConfigError, StartError
from runtime.pem import AUTHORITIES, split_pem

KEY = "ca.key"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_AUTHORITY_DAYS = 3650
# Clocks of two machines differ.
_BACKDATED = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate of this mesh; `hosts` are the names under which clients may look for it."""

    file: Path
    caller: Caller
    hosts: tuple[str, ...]
    ends: datetime


def file_name(caller: Caller) -> str:
    """Without its ending."""
    return str(caller.role) if caller.tenant is None else f"{caller.role}-{caller.tenant}"


class Authority:
    """Raises `StartError` when there is none in `folder`, or it cannot be read."""

    def __init__(self, folder: Path, mesh: str) -> None:
        self._folder = folder
        self._mesh = mesh
        try:
            secret, chain = split_pem((folder / KEY).read_bytes())
            key = load_pem_private_key(secret, password=None)
            self._certificate = x509.load_pem_x509_certificate(chain)
        except OSError as error:
            raise StartError(f"{error.filename}: {error.strerror}; `baton certs init` makes an authority") from error
        except ValueError as error:
            raise StartError(f"{folder / KEY} is not an authority's: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StartError(f"{folder / KEY} holds a key of another kind than `baton certs` makes")
        self._key = key

    @classmethod
    def create(cls, folder: Path, mesh: str) -> "Authority":
        """Raises `StartError` when there is one already: what it issued would be worth nothing."""
        if (folder / KEY).exists() or (folder / AUTHORITIES).exists():
            raise StartError(f"{folder} has an authority already; `baton certs rotate --authority` replaces it")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_authority(folder, mesh, b"")
        return cls(folder, mesh)

    def issue(self, caller: Caller, hosts: Sequence[str] = (), days: int = 90) -> Issued:
        """Make or replace the caller's file. Members are found under their role's name wherever they are; `hosts` are
        those under which clients of others look for one."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name_of(self._mesh, caller))]
        if caller.role in MEMBERS:
            names.append(x509.DNSName(server_name(self._mesh, Role(caller.role))))
        names += [_host(host) for host in hosts]
        key = ec.generate_private_key(ec.SECP256R1())
        ends = min(_now() + timedelta(days=days), self._certificate.not_valid_after_utc)
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if caller.role in MEMBERS else [])]
        certificate = (
            _builder(key, ends)
            .issuer_name(self._certificate.subject)
            .subject_name(_common_name(file_name(caller)))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        file = self._folder / f"{file_name(caller)}.pem"
        _replace(file, _pem(key) + certificate.public_bytes(Encoding.PEM))
        return Issued(file, caller, tuple(hosts), ends)

    def rotate(self, days: int = 90) -> list[Issued]:
        """Issue anew all that was issued here, for the same callers and hosts."""
        return [self.issue(each.caller, each.hosts, days) for each in issued(self._folder, self._mesh)]

    def succeed(self) -> "Authority":
        """Replace the authority itself, and nothing that it issued: the one before stays trusted beside its successor,
        until that is replaced too. So whoever has a copy of ca.pem can get the new one before it is needed."""
        trusted = self._certificate.public_bytes(Encoding.PEM)
        _make_authority(self._folder, self._mesh, trusted)
        return Authority(self._folder, self._mesh)


def issued(folder: Path, mesh: str) -> list[Issued]:
    """What `folder` holds for this mesh, by file name."""
    found = (read_issued(file, mesh) for file in sorted(folder.glob("*.pem")) if file.name != AUTHORITIES)
    return [each for each in found if each is not None]


def read_issued(file: Path, mesh: str) -> Issued | None:
    """None when it is of another mesh, or no certificate with a role. Raises `StartError` when it cannot be read."""
    try:
        _, chain = split_pem(file.read_bytes())
        certificate = x509.load_pem_x509_certificate(chain)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}; `baton certs issue` makes it") from error
    except (ValueError, x509.ExtensionNotFound):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    caller = named(mesh, uris[0]) if len(uris) == 1 else None
    if caller is None:
        return None
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    own = server_name(mesh, Role(caller.role)) if caller.role is not None else ""
    kept = tuple(host for host in hosts if host != own)
    return Issued(file, caller, kept, certificate.not_valid_after_utc)


def _make_authority(folder: Path, mesh: str, trusted: bytes) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    # Successors differ by name, so that nobody takes one's certificate for the other's.
    name = _common_name(f"{mesh}.baton authority {os.urandom(4).hex()}")
    certificate = (
        _builder(key, _now() + timedelta(days=_AUTHORITY_DAYS))
        .issuer_name(name)
        .subject_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    own = certificate.public_bytes(Encoding.PEM)
    _replace(folder / AUTHORITIES, own + trusted)  # first: whatever either issues is trusted then
    _replace(folder / KEY, _pem(key) + own)


def _builder(key: ec.EllipticCurvePrivateKey, ends: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().public_key(key.public_key()).serial_number(x509.random_serial_number())
    return builder.not_valid_before(_now() - _BACKDATED).not_valid_after(ends)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"host {host!r} is neither a name nor an address") from error


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _replace(file: Path, content: bytes) -> None:
    """Whole or not at all: a process may be reading it."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())
    fresh.replace(file)

"""Who may take part in a service: certificates for mutual TLS.

.. code-block:: none

    keys/ca.pem          the certificate of the authority
    keys/ca-key.pem      its private key; signs, and leaves the machine never
    keys/NAME/cert.pem   says who NAME is: a device of the bundle, or a client
    keys/NAME/key.pem    proves it; for the machine of NAME alone
    keys/NAME/ca.pem     a copy of the first, which tells NAME whom to believe

The authority may also sign bundles (`sign_bundle`), so that a machine with ``ca.pem`` can tell its
own from any other (`check_signature`).

The folder ``NAME`` goes to its machine. There `tls_settings` makes zenoh talk only to those whose
certificate the authority signed. What each of them may say is in `isthmus.run.access`.
"""

import base64
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from isthmus.bundle import INDEX_FILE, SIGNATURE_FILE, read_bundle, read_index
from isthmus.errors import BundleError, InputError
from isthmus.files import read_json, refusing, write_bytes, write_json
from isthmus.platform.platform import NAME

CA, CA_KEY, CERTIFICATE, KEY = "ca.pem", "ca-key.pem", "cert.pem", "key.pem"
_SIGNED = b"isthmus.bundle\n"  # before what is signed, so that it is never taken for a certificate
_MAX_SIGNATURE_BYTES = 4096
_CA_DAYS = 3650
_EARLIER = timedelta(days=1)  # the clock of a device may be behind
_HOST = re.compile(r"(?!(?:.*\.)?\d+$)[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_HERE = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signature:
    """A bundle's signature.

    Attributes:
        authority: SHA-256 of the certificate of who signed, as hexadecimal text.
        signed_at: When, by the authority's clock, in UTC as ISO 8601 writes it.
        signature: ECDSA over SHA-256 of that time and ``bundle.json``, in base64.
    """

    SCHEMA = "isthmus.signature/2"
    authority: str
    signed_at: str
    signature: str


def init_keys(folder: Path) -> None:
    """Make a certificate authority: ``ca.pem``, and ``ca-key.pem`` for the owner's eyes alone.

    Args:
        folder: Where; made if it is not there.

    Raises:
        InputError: There is one already, or nothing can be written there.
    """
    for path in (folder / CA, folder / CA_KEY):
        if path.exists():
            raise InputError(
                f"{path}: exists, and without it all that it signed is worth nothing; use it "
                "with `isthmus keys issue`, or name another --out"
            )
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name("Isthmus CA")
    until = datetime.now(UTC) + timedelta(days=_CA_DAYS)
    unsigned = _certificate(name, key, issuer=name, until=until, signs=True)
    _write_key(folder / CA_KEY, key)
    try:
        _write_certificate(folder / CA, unsigned.sign(key, hashes.SHA256()))
    except BaseException:
        (folder / CA_KEY).unlink()  # one without the other is of no use
        raise


def issue_key(
    folder: Path, name: str, *, days: int = 365, hosts: Iterable[str] = (), renew: bool = False
) -> Path:
    """Make a key and a certificate for a device or a client.

    Args:
        folder: Of the authority; see `init_keys`.
        name: Of a device in the bundle, or of a client.
        days: How long it is good from now on.
        hosts: Names and addresses at which others reach it, besides localhost and 127.0.0.1.
        renew: Replace those that it has; without ``hosts``, the hosts stay as they are.

    Returns:
        The folder for its machine: ``cert.pem``, ``key.pem`` and ``ca.pem``.

    Raises:
        InputError: No authority there, one that has ended, a name or a host that is none, or the
            name has a certificate already.
    """
    place = folder / name
    if not re.fullmatch(NAME, name):
        raise InputError(
            f"name {name!r}: expected that of a device or a client, up to 64 letters, digits, "
            "'-', '_' or '.'"
        )
    if (place / CERTIFICATE).exists():
        if not renew:
            raise InputError(f"{place}: exists; add --renew to replace its key and certificate")
        hosts = tuple(hosts) or _hosts(_read_certificate(place / CERTIFICATE))
    ca, ca_key = _read_authority(folder)
    if not 0 < days <= (ca.not_valid_after_utc - datetime.now(UTC)).days:
        raise InputError(
            f"--days {days}: expected 1 or more, and an end before that of {folder / CA}, "
            f"{_day(ca.not_valid_after_utc)}"
        )
    until = datetime.now(UTC) + timedelta(days=days)
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [_alternative(host) for host in dict.fromkeys((*_HERE, *hosts))]
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    unsigned = (
        _certificate(_common_name(name), key, issuer=ca.subject, until=until, signs=False)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    )
    _write_key(place / KEY, key)
    _write_certificate(place / CA, ca)
    _write_certificate(place / CERTIFICATE, unsigned.sign(ca_key, hashes.SHA256()))
    return place


def sign_bundle(path: Path, folder: Path) -> Path:
    """Sign a bundle: its ``bundle.json``, which holds the SHA-256 of every other file.

    Args:
        path: The bundle; an older signature is replaced.
        folder: Of the authority; see `init_keys`.

    Returns:
        The file that was written.

    Raises:
        BundleError: The bundle is damaged.
        InputError: No authority there, or nothing can be written.
    """
    read_bundle(path)
    ca, key = _read_authority(folder)
    signed_at = datetime.now(UTC).isoformat(timespec="seconds")
    signature = key.sign(_signed(path, signed_at), ec.ECDSA(hashes.SHA256()))
    signed = _Signature(
        authority=ca.fingerprint(hashes.SHA256()).hex(),
        signed_at=signed_at,
        signature=base64.b64encode(signature).decode(),
    )
    write_json(path / SIGNATURE_FILE, signed)
    return path / SIGNATURE_FILE


def check_signature(path: Path, folder: Path, *, since: datetime | None = None) -> None:
    """Raise unless an authority signed a bundle; whether its files are whole, `read_bundle` says.

    Args:
        path: The bundle.
        folder: Holds ``ca.pem``: that of a device or a client, or the authority's own.
        since: When it must have been signed at the earliest, by the authority's clock; UTC where
            it does not say otherwise. None takes any.

    Raises:
        BundleError: It is not signed, by another authority, or too early, or has been changed
            since.
        InputError: There is no such certificate, or it has ended.
    """
    again = f"sign it with `isthmus keys sign {path}`, or leave out --signed"
    place = path / SIGNATURE_FILE
    if not place.is_file() or place.is_symlink():
        raise BundleError(f"{path}: has no {SIGNATURE_FILE}, expected one; {again}")
    if place.stat().st_size > _MAX_SIGNATURE_BYTES:
        raise BundleError(f"{place}: over {_MAX_SIGNATURE_BYTES} bytes; {again}")
    signed = read_json(place, _Signature)
    ca = _read_certificate(folder / CA)
    _check_time(folder / CA, ca, "make a new authority with `isthmus keys init --out`")
    if signed.authority != ca.fingerprint(hashes.SHA256()).hex():
        raise BundleError(f"{place}: is of another authority than {folder / CA}; {again}")
    key = ca.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError(f"{folder / CA}: expected a certificate that `isthmus keys init` made")
    try:
        key.verify(
            base64.b64decode(signed.signature, validate=True),
            _signed(path, signed.signed_at),
            ec.ECDSA(hashes.SHA256()),
        )
    except (InvalidSignature, ValueError) as error:
        raise BundleError(f"{path / INDEX_FILE}: is not what was signed; {again}") from error
    if since is not None:
        since = since if since.tzinfo else since.replace(tzinfo=UTC)
        if datetime.fromisoformat(signed.signed_at) < since:
            raise BundleError(
                f"{place}: was signed at {signed.signed_at}, expected {since.isoformat()} or "
                "later; take the newest bundle, or name an earlier --signed-since"
            )


def _signed(path: Path, signed_at: str) -> bytes:
    """Return what a signature is of."""
    return _SIGNED + f"{signed_at}\n".encode() + read_index(path)


def tls_settings(folder: Path, *, name: str = "") -> dict[str, Any]:
    """Return what makes zenoh listen and connect by mutual TLS alone.

    The address of who is connected to must be a host of its certificate, so that nobody poses as
    another by his address; a link is closed when the other's certificate ends.

    Args:
        folder: As `issue_key` returns it.
        name: Whose the certificate must be; anybody's if left out.

    Returns:
        zenoh's settings, for ``Config.insert_json5``.

    Raises:
        InputError: A file is missing or others may read the key; the certificate has ended, is
            not signed by ``ca.pem`` or is another's; or the key is not that of the certificate.
    """
    again = "issue it anew with `isthmus keys issue --renew`"
    ca = _read_certificate(folder / CA)
    certificate = _read_certificate(folder / CERTIFICATE)
    key = _read_key(folder / KEY)
    if key.public_key() != certificate.public_key():
        raise InputError(f"{folder / KEY}: is not the key of {CERTIFICATE} beside it; {again}")
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise InputError(
            f"{folder / CERTIFICATE}: is not signed by {CA} beside it; {again}"
        ) from error
    _check_time(folder / CA, ca, "make a new authority with `isthmus keys init --out`")
    _check_time(folder / CERTIFICATE, certificate, again)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    found = str(names[0].value) if names else ""
    if name not in ("", found):
        raise InputError(
            f"{folder / CERTIFICATE}: found the name {found}, expected {name}; "
            f"give the folder that `isthmus keys issue {name}` made"
        )
    return {
        "transport/link/protocols": ["tls"],
        "transport/link/tls/enable_mtls": True,
        "transport/link/tls/root_ca_certificate": str((folder / CA).resolve()),
        **{
            f"transport/link/tls/{way}_{what}": str((folder / file).resolve())
            for way in ("listen", "connect")
            for what, file in (("certificate", CERTIFICATE), ("private_key", KEY))
        },
        "transport/link/tls/verify_name_on_connect": True,
        "transport/link/tls/close_link_on_expiration": True,
    }


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    until: datetime,
    signs: bool,
) -> x509.CertificateBuilder:
    """Return what is common to all; ``signs`` tells that of an authority from the others."""
    usage = x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
    constraints = x509.BasicConstraints(ca=signs, path_length=0 if signs else None)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _EARLIER)
        .not_valid_after(until)
        .issuer_name(issuer)
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise InputError(
                f"--host {host!r}: expected a name or an address without a port, "
                "like hub.local or 10.0.0.5"
            ) from None
        return x509.DNSName(host)


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _check_time(path: Path, certificate: x509.Certificate, remedy: str) -> None:
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        raise InputError(f"{path}: ended on {_day(certificate.not_valid_after_utc)}; {remedy}")
    if certificate.not_valid_before_utc > now:
        raise InputError(
            f"{path}: begins on {_day(certificate.not_valid_before_utc)}, and by this machine's "
            f"clock it is {_day(now)}; set the clock"
        )


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if not (folder / CA_KEY).exists():
        raise InputError(f"{folder}: no {CA_KEY}; make an authority with `isthmus keys init`")
    ca, key = _read_certificate(folder / CA), _read_key(folder / CA_KEY)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise InputError(
            f"{folder / CA_KEY}: is not the key of {CA} beside it; expected both "
            "as `isthmus keys init` made them"
        )
    return ca, key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise InputError(
            f"{path}: no certificate in PEM; expected one of `isthmus keys`"
        ) from error


def _read_key(path: Path) -> PrivateKeyTypes:
    data = _read(path)
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise InputError(
            f"{path}: others may read or write it (mode {mode:04o}), expected 0600; "
            f"`chmod 600 {path}`, and `isthmus keys issue --renew` if somebody has"
        )
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path}: no private key in PEM without a password; expected one of `isthmus keys`"
        ) from error


def _read(path: Path) -> bytes:
    with refusing(path, "cannot be read", "expected a file of `isthmus keys`"):
        return path.read_bytes()


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_bytes(path, pem, mode=0o600)


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    write_bytes(path, certificate.public_bytes(serialization.Encoding.PEM))

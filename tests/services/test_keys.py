"""An API key is recognized by its hash, its tenant must be served, and it is written nowhere."""

import json
from pathlib import Path

import pytest

from runtime.domain.identity import Caller, Role
from runtime.errors import NotFound, PermissionDenied, StartError, Unauthenticated
from runtime.ids import TenantId
from runtime.services.keys import KeyRing, admin_key, new_key, read_keys, without, write_keys

ACME = TenantId("acme")
CLIENT = Caller(Role.CLIENT, ACME)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_known_by_all_of_it_and_kept_as_its_hash_only(file: Path) -> None:
    key, entry = new_key(CLIENT)
    write_keys(file, (entry,))
    assert KeyRing(file, (ACME,)).caller(key) == CLIENT
    secret = key.rpartition("_")[2]
    assert secret not in file.read_text()
    assert secret not in repr(entry)
    assert file.stat().st_mode & 0o777 == 0o600
    for wrong in ("", "x", key[:-1], key + "0", key.replace(secret, "0" * 64), f"baton_00000000_{secret}", key.upper()):
        with pytest.raises(Unauthenticated) as refused:
            KeyRing(file, (ACME,)).caller(wrong)
        assert secret not in str(refused.value)


def test_a_key_of_a_tenant_that_is_not_served_is_denied(file: Path) -> None:
    key, entry = new_key(CLIENT)
    write_keys(file, (entry,))
    with pytest.raises(PermissionDenied):
        KeyRing(file, (TenantId("globex"),)).caller(key)


def test_keys_come_and_go_while_they_are_used(file: Path) -> None:
    ring = KeyRing(file, (ACME,))
    key, entry = new_key(CLIENT)
    with pytest.raises(Unauthenticated):
        ring.caller(key)
    write_keys(file, (entry,))
    assert ring.caller(key) == CLIENT
    file.write_text("{")
    assert ring.caller(key) == CLIENT, "what makes no sense changes nothing"
    write_keys(file, without((entry,), entry.id))
    with pytest.raises(Unauthenticated):
        ring.caller(key)
    with pytest.raises(NotFound, match=entry.id):
        without((), entry.id)


def test_the_key_of_whoever_runs_the_mesh_is_made_once_and_again_when_it_was_revoked(file: Path) -> None:
    key = admin_key(file, file.parent)
    assert admin_key(file, file.parent) == key
    assert KeyRing(file, ()).caller(key) == Caller(Role.ADMIN)
    write_keys(file, ())
    fresh = admin_key(file, file.parent)
    assert fresh != key
    assert KeyRing(file, ()).caller(fresh).role is Role.ADMIN


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "0123abcd", "sha256": "0" * 64},
        {"id": "0123abcd", "sha256": "0" * 64, "role": "admin", "tenant": "acme"},
        {"id": "0123abcd", "sha256": "0" * 64, "role": "decode"},
        {"id": "0123abcd", "sha256": "0" * 63, "tenant": "acme"},
        {"id": "0123abcd", "key": "baton", "tenant": "acme"},
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_its_name(file: Path, entry: dict[str, str]) -> None:
    file.write_text(json.dumps({"keys": [entry]}))
    with pytest.raises(StartError, match=r"access\.keys: .*keys\.json"):
        KeyRing(file, (ACME,))
    with pytest.raises(StartError, match=r"access\.keys: .*keys\.json"):
        read_keys(file)

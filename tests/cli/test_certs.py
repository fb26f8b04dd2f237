"""`baton certs` and `baton keys` make what a mesh with TLS needs, and show no secret but once."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.config import load_config
from runtime.domain.identity import Caller, Role
from runtime.ids import TenantId
from runtime.mesh.security import check_security
from runtime.services.keys import KeyRing

RUNNER = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of a configuration."""
    path = tmp_path / "mesh.yaml"
    path.write_text("{mesh: {name: safe, state: state}, tls: {enabled: true}, access: {tenants: [acme]}}")
    return path


def run(*arguments: str, file: Path) -> str:
    result = RUNNER.invoke(app, [*arguments, "--config", str(file)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments: str, file: Path) -> str:
    result = RUNNER.invoke(app, [*arguments, "--config", str(file)])
    assert result.exit_code == 1
    return result.stderr


def test_an_authority_is_made_once_with_all_that_a_mesh_needs(file: Path) -> None:
    told = run("certs", "init", "--host", "mesh.example.com", file=file)
    assert "found at localhost, 127.0.0.1, ::1, mesh.example.com" in told
    check_security(load_config(file))
    folder = load_config(file).certificates
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "has an authority already" in refused("certs", "init", file=file)


def test_a_client_is_of_a_tenant_that_is_served(file: Path) -> None:
    run("certs", "init", file=file)
    assert "client of acme" in run("certs", "issue", "client", "acme", file=file)
    assert (load_config(file).certificates / "client-acme.pem").exists()
    assert "access.tenants: globex is not among acme" in refused("certs", "issue", "client", "globex", file=file)
    assert "a client is of a tenant" in refused("certs", "issue", "client", file=file)
    assert "a client is of a tenant" in refused("certs", "issue", "decode", "acme", file=file)


def test_a_rotation_keeps_whose_and_where_and_replaces_the_rest(file: Path) -> None:
    assert "baton certs init" in refused("certs", "rotate", file=file)
    run("certs", "init", "--host", "mesh.example.com", file=file)
    folder = load_config(file).certificates
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run("certs", "rotate", file=file)
    listed = run("certs", "list", file=file)
    assert "found at localhost, mesh.example.com, 127.0.0.1, ::1" in listed
    assert run("certs", "rotate", file=file) == listed
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca.key"}
    assert "clients too" in run("certs", "rotate", "--authority", file=file)
    assert before["ca.pem"] in (folder / "ca.pem").read_bytes()
    check_security(load_config(file))


def test_a_key_is_shown_once_and_then_only_its_id(file: Path) -> None:
    key = run("keys", "create", "acme", file=file).strip()
    config = load_config(file)
    assert KeyRing(config.keys, (TenantId("acme"),)).caller(key) == Caller(Role.CLIENT, TenantId("acme"))
    ident, secret = key.split("_")[1:]
    listed = run("keys", "list", file=file)
    assert ident in listed
    assert secret not in listed + repr(config)
    assert "there is no key 00000000" in refused("keys", "revoke", "00000000", file=file)
    run("keys", "revoke", ident, file=file)
    assert ident not in run("keys", "list", file=file)
    assert "name a tenant, or say --admin" in refused("keys", "create", file=file)
    assert "access.tenants: globex is not among acme" in refused("keys", "create", "globex", file=file)

"""Mutual TLS on every port, roles at every RPC, keys and tenants: on real meshes over real connections."""

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
import httpx
import pytest

from batonmesh import AsyncClient, Client, Credentials, NotFound, PermissionDenied, Unauthenticated, Unavailable
from runtime.config import Config, EngineConfig
from runtime.domain.identity import Caller, Role, server_name
from runtime.errors import StartError
from runtime.mesh import authority as authority_module
from runtime.mesh.authority import Authority, file_name
from runtime.mesh.local import LocalMesh, local_mesh
from runtime.mesh.security import check_listening, check_security, in_words, own_credentials
from runtime.services.access import CALLERS
from runtime.services.keys import new_key, read_keys, without, write_keys
from tests.mesh.guarded import (
    ACME,
    CALLERS_THERE_ARE,
    GLOBEX,
    MESH,
    METHODS,
    answer,
    channel,
    config,
    issue,
    make_certificates,
    ports,
)

PROMPT = list(b"A prompt that is long enough to be handed over by a prefill worker, page by page by page.")
TOKENS = 8
GATEWAY = server_name(MESH, Role.GATEWAY)
ANSWERED = {None, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}


def shown(config: Config, caller: Caller) -> Credentials:
    authorities = (config.certificates / "ca.pem").read_bytes()
    return Credentials(authorities, (config.certificates / f"{file_name(caller)}.pem").read_bytes(), None, GATEWAY)


def own_file(config: Config, caller: Caller) -> bytes:
    return (config.certificates / f"{file_name(caller)}.pem").read_bytes()


def authorities(config: Config) -> bytes:
    return (config.certificates / "ca.pem").read_bytes()


async def completed(mesh: LocalMesh, credentials: Credentials, prompt: list[int] = PROMPT) -> int:
    """Tokens that were moved from a prefill worker for an answer."""
    async with AsyncClient(mesh.grpc, credentials) as client:
        answer = await client.complete("simulated", prompt, max_tokens=TOKENS, temperature=0, timeout=20)
    assert answer.final.usage.completion_tokens == TOKENS
    return answer.final.handoff.moved_tokens


async def cached(http: httpx.AsyncClient, key: str) -> int:
    """Tokens of a certain prompt that were in a cache."""
    body = {"model": "simulated", "prompt": "x" * 40, "max_tokens": 1}
    answer = await http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_every_rpc_of_the_contract_has_an_entry_in_the_table() -> None:
    assert set(CALLERS) == set(METHODS)


async def test_a_mesh_with_tls_hands_pages_over_and_fails_over(tmp_path: Path) -> None:
    settings = config(tmp_path)
    make_certificates(settings)
    check_security(settings)
    async with local_mesh(settings) as mesh:
        client = shown(settings, Caller(Role.CLIENT, ACME))
        assert await completed(mesh, client) == len(PROMPT) - 1
        for worker in [name for name in mesh.workers if name.startswith("decode")][:1]:
            await mesh.kill(worker)
        for _ in range(2):
            await completed(mesh, client)
        async with AsyncClient(mesh.grpc, own_credentials(settings)) as admin:
            assert len((await admin.topology(timeout=5)).workers) >= 2


async def test_every_port_answers_every_rpc_by_the_table(tmp_path: Path) -> None:
    settings = config(tmp_path)
    make_certificates(settings)
    async with local_mesh(settings) as mesh:
        for address, role in ports(mesh).items():
            served = set[str]()
            for caller in CALLERS_THERE_ARE:
                async with channel(address, role, authorities(settings), own_file(settings, caller)) as opened:
                    for method in METHODS:
                        code = await answer(opened, method)
                        if code is grpc.StatusCode.UNIMPLEMENTED:
                            continue
                        served.add(method)
                        allowed = caller.role in CALLERS[method]
                        expected = ANSWERED if allowed else {grpc.StatusCode.PERMISSION_DENIED}
                        assert code in expected, (role, method, caller)
            assert served, f"the {role} at {address} serves nothing"


async def test_no_port_lets_in_who_has_no_good_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path / "mesh")
    make_certificates(settings)
    elsewhere = make_certificates(config(tmp_path / "elsewhere"))
    stranger = issue(elsewhere, Caller(Role.ADMIN)).file.read_bytes()
    async with local_mesh(settings) as mesh:
        with monkeypatch.context() as past:
            then = authority_module._now() - timedelta(days=100)
            past.setattr(authority_module, "_now", lambda: then)
            expired = issue(Authority(settings.certificates, MESH), Caller(Role.ADMIN)).file.read_bytes()
        for address, role in ports(mesh).items():
            for kind, own in (("none", None), ("expired", expired), ("of another authority", stranger)):
                async with channel(address, role, authorities(settings), own) as opened:
                    for method in METHODS:
                        assert await answer(opened, method) is grpc.StatusCode.UNAVAILABLE, (role, kind)
            async with grpc.aio.insecure_channel(address) as plain:
                assert await answer(plain, METHODS[0]) is grpc.StatusCode.UNAVAILABLE


async def test_a_server_of_another_role_is_not_talked_to(tmp_path: Path) -> None:
    settings = config(tmp_path)
    make_certificates(settings)
    async with local_mesh(settings) as mesh:
        own = own_file(settings, Caller(Role.GATEWAY))
        for address, role in ports(mesh).items():
            wrong = Role.DECODE if role is not Role.DECODE else Role.PREFILL
            async with channel(address, wrong, authorities(settings), own) as opened:
                assert await answer(opened, METHODS[0]) is grpc.StatusCode.UNAVAILABLE


async def test_certificates_and_then_the_authority_are_rotated_while_the_mesh_serves(tmp_path: Path) -> None:
    settings = config(tmp_path)
    authority = make_certificates(settings)
    async with local_mesh(settings) as mesh:
        old = shown(settings, Caller(Role.CLIENT, ACME))
        await completed(mesh, old)
        authority.rotate()
        await completed(mesh, old, [*PROMPT, 1])
        authority = authority.succeed()
        assert await completed(mesh, old, [2, *PROMPT]) > 0, "what the authority before issued is still good"
        authority.rotate()
        await completed(mesh, shown(settings, Caller(Role.CLIENT, ACME)), [3, *PROMPT])
        await completed(mesh, Credentials(authorities(settings), old.certificate, None, GATEWAY), [6, *PROMPT])
        authority.succeed()
        new = shown(settings, Caller(Role.CLIENT, ACME))
        assert await completed(mesh, new, [4, *PROMPT]) > 0, "members found each other by their new certificates"
        with pytest.raises(Unavailable):
            await completed(mesh, Credentials(new.authorities, old.certificate, None, GATEWAY))
        restarted = next(name for name in mesh.workers if name.startswith("decode"))
        await mesh.kill(restarted)
        await mesh.start(restarted)
        await completed(mesh, new, [5, *PROMPT])


async def test_a_replaced_certificate_that_makes_no_sense_changes_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path)
    make_certificates(settings)
    async with local_mesh(settings) as mesh:
        (settings.certificates / "gateway.pem").write_text("half a fi")
        (settings.certificates / "decode.pem").unlink()
        assert await completed(mesh, shown(settings, Caller(Role.CLIENT, ACME))) > 0


async def test_a_prefill_worker_registers_no_decode_worker_and_takes_none_out(tmp_path: Path) -> None:
    from batonmesh.v1 import mesh_pb2, mesh_pb2_grpc
    from runtime.wire.mesh import pack_worker

    settings = config(tmp_path)
    make_certificates(settings)
    async with local_mesh(settings) as mesh:
        own = own_file(settings, Caller(Role.PREFILL))
        decode = next(running.worker for running in mesh.workers.values() if running.worker.role == "decode")
        async with channel(mesh.controller.address, Role.CONTROLLER, authorities(settings), own) as opened:
            registry = mesh_pb2_grpc.RegistryStub(opened)
            with pytest.raises(grpc.aio.AioRpcError, match="no say about decode workers"):
                await registry.Register(mesh_pb2.RegisterRequest(worker=pack_worker(decode)))
            with pytest.raises(grpc.aio.AioRpcError, match="no say about decode workers"):
                await registry.Leave(mesh_pb2.LeaveRequest(worker=decode.id, boot=decode.boot))
        assert decode.id in {worker.id for worker in mesh.controller.role.view().workers}


async def test_keys_open_both_apis_to_their_tenants_and_are_revoked_at_once(tmp_path: Path) -> None:
    settings = config(tmp_path, clients="keys")
    make_certificates(settings)
    acme, kept = new_key(Caller(Role.CLIENT, ACME))
    globex, other = new_key(Caller(Role.CLIENT, GLOBEX))
    write_keys(settings.keys, (kept, other))
    admin = own_credentials(settings)
    trusted = authorities(settings)
    async with local_mesh(settings, http_port=0) as mesh:
        for _ in range(3):  # so that both decode workers have the pages
            await completed(mesh, Credentials(trusted, None, acme, GATEWAY))
        assert await completed(mesh, Credentials(trusted, None, globex, GATEWAY)) == len(PROMPT) - 1
        async with AsyncClient(mesh.grpc, Credentials(trusted, None, acme, GATEWAY)) as client:
            with pytest.raises(PermissionDenied):
                await client.topology(timeout=5)
        async with AsyncClient(mesh.grpc, admin) as operator:
            assert len((await operator.topology(timeout=5)).workers) == 3
        for wrong in (None, "sk-1", acme[:-1] + ("0" if acme[-1] != "0" else "1"), f"baton_{kept.id}_{'0' * 64}"):
            with pytest.raises(Unauthenticated):
                await completed(mesh, Credentials(trusted, None, wrong, GATEWAY))
        async with httpx.AsyncClient(base_url=mesh.http, verify=False) as http:
            body = {"model": "simulated", "prompt": "Hello.", "max_tokens": 2}
            assert (await http.get("/healthz")).status_code == 200
            refused = await http.post("/v1/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert (await http.get("/v1/models")).status_code == 401
            bearer = {"authorization": f"Bearer {acme}"}
            assert (await http.post("/v1/completions", json=body, headers=bearer)).status_code == 200
            assert [await cached(http, acme) for _ in range(4)][-1] > 0, "every worker has had it"
            assert await cached(http, globex) == 0, "what acme has cached is nobody else's"
            write_keys(settings.keys, without(read_keys(settings.keys), kept.id))
            assert (await http.post("/v1/completions", json=body, headers=bearer)).status_code == 401
        with pytest.raises(Unauthenticated):
            await completed(mesh, Credentials(trusted, None, acme, GATEWAY))


async def test_a_session_is_its_tenant_s_and_for_others_it_is_not_there(tmp_path: Path) -> None:
    settings = config(tmp_path, clients="keys")
    make_certificates(settings)
    acme, kept = new_key(Caller(Role.CLIENT, ACME))
    globex, other = new_key(Caller(Role.CLIENT, GLOBEX))
    write_keys(settings.keys, (kept, other))
    trusted = authorities(settings)

    def as_clients(gateway: str) -> str:
        with Client(gateway, Credentials(trusted, None, acme, GATEWAY)) as owner:
            session = owner.sessions.create("simulated", rerender=True).id
            assert owner.sessions.complete(session, "Hello.", max_tokens=4).turn.id
            with Client(gateway, Credentials(trusted, None, globex, GATEWAY)) as stranger:
                assert stranger.sessions.newest() == []
                for missing in (session, "sess-0123456789abcdef"):
                    with pytest.raises(NotFound) as told:
                        stranger.sessions.get(missing)
                    assert told.value.message == "there is no such session"
                    with pytest.raises(NotFound):
                        stranger.sessions.complete(missing, "Hello.", max_tokens=4)
            assert [each.id for each in owner.sessions.newest()] == [session]
        with Client(gateway, Credentials(trusted, server_name=GATEWAY)) as nobody, pytest.raises(Unauthenticated):
            nobody.sessions.newest()
        return session

    async with local_mesh(settings, http_port=0) as mesh:
        session = await asyncio.to_thread(as_clients, mesh.grpc)
        body = {"model": "simulated", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}
        async with httpx.AsyncClient(base_url=mesh.http, verify=False) as http:
            for shown, status in ((acme, 200), (globex, 404)):
                headers = {"authorization": f"Bearer {shown}", "x-baton-session": session}
                assert (await http.post("/v1/chat/completions", json=body, headers=headers)).status_code == status


async def test_an_open_mesh_beyond_this_machine_is_open_to_clients_and_not_to_operators(tmp_path: Path) -> None:
    plain = Config().tls.model_copy(update={"plaintext": "everywhere"})
    everywhere = Config().gateway.model_copy(update={"host": "0.0.0.0"})
    settings = config(tmp_path).model_copy(update={"tls": plain, "gateway": everywhere})
    admin = own_credentials(settings)
    async with local_mesh(settings) as mesh:
        await completed(mesh, Credentials())
        async with AsyncClient(mesh.grpc) as anybody:
            with pytest.raises(PermissionDenied):
                await anybody.drain("decode-0", 1)
        with pytest.raises(Unauthenticated):
            await completed(mesh, Credentials(api_key="wrong"))
        async with AsyncClient(mesh.grpc, admin) as operator:
            assert (await operator.topology(timeout=5)).workers


async def test_a_tenant_that_is_not_served_here_is_turned_away(tmp_path: Path) -> None:
    settings = config(tmp_path)
    authority = make_certificates(settings)
    unknown = Caller(Role.CLIENT, type(ACME)("initech"))
    issue(authority, unknown)
    async with local_mesh(settings) as mesh:
        with pytest.raises(PermissionDenied):
            await completed(mesh, shown(settings, unknown))


def test_what_the_mesh_needs_and_does_not_find_is_told_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path)
    with pytest.raises(StartError, match=r"tls\.folder: .*controller\.pem: No such file.*baton certs"):
        check_security(settings)
    authority = make_certificates(settings)
    check_security(settings)
    other = settings.model_copy(update={"mesh": settings.mesh.model_copy(update={"name": "other"})})
    with pytest.raises(StartError, match="is no controller's certificate of the mesh other"):
        check_security(other)
    then = authority_module._now() - timedelta(days=100)
    monkeypatch.setattr(authority_module, "_now", lambda: then)
    issue(authority, Caller(Role.DECODE))
    with pytest.raises(StartError, match=r"decode\.pem expired on .*baton certs rotate"):
        check_security(settings)


def test_workers_listen_unencrypted_on_the_network_only_where_that_is_said(tmp_path: Path) -> None:
    plain = Config()
    check_listening(plain, "127.0.0.1")
    check_listening(config(tmp_path), "10.0.0.1")
    with pytest.raises(StartError, match=r"10\.0\.0\.1 unencrypted"):
        check_listening(plain, "10.0.0.1")
    assert in_words(plain) == "TLS is off: everything is unencrypted, on this machine only; anybody may ask"
    assert in_words(config(tmp_path)) == "mutual TLS between all members; clients show certificates"


async def test_without_tls_everybody_may_ask_and_still_a_big_message_is_refused(tmp_path: Path) -> None:
    settings = config(tmp_path).model_copy(update={"tls": Config().tls, "engine": EngineConfig(pages=64)})
    async with local_mesh(settings) as mesh, grpc.aio.insecure_channel(mesh.grpc) as plain:
        assert await answer(plain, "/batonmesh.v1.Mesh/Topology") is None
        big = (("x-big", "x" * (32 << 10)),)
        async with asyncio.timeout(10):
            assert await answer(plain, "/batonmesh.v1.Mesh/Topology", big) is not None

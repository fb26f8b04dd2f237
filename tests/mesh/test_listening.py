"""A port in use is found before somebody else's traffic is."""

import socket

import pytest

from runtime.errors import StartError
from runtime.mesh.listening import free_ports, require_free, require_listener


@pytest.mark.parametrize("shared", [False, True])
def test_a_taken_port_is_told_by_its_field_also_when_its_owner_would_share_it(shared: bool) -> None:
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        with pytest.raises(StartError, match=rf"gateway\.grpc_port: port {port} on 127\.0\.0\.1 .*in use"):
            require_free("127.0.0.1", port, "gateway.grpc_port")
    require_free("127.0.0.1", port, "gateway.grpc_port")


def test_a_host_that_is_not_ours_is_told_by_the_field() -> None:
    with pytest.raises(StartError, match=r"gateway\.host_port"):
        require_free("203.0.113.1", 8000, "gateway.host_port")


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_an_address_where_nobody_listens_is_told_by_the_field() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        require_listener(address, "ray.address", timeout_s=5)
    with pytest.raises(StartError, match=rf"ray\.address: nobody answers at {address}"):
        require_listener(address, "ray.address", timeout_s=5)

"""One mesh on a cluster that we are connected to: brings its actors up, tells how they are, deletes them by name."""

import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Literal

import httpx
import ray
from ray import serve

from actors.controller import NAME, ControllerHandle
from actors.environment import attaching
from actors.events import Event, News, Step
from actors.gateway import gateway_application
from batonmesh import BatonError, Client
from runtime.cli.face import Addresses
from runtime.config import Config
from runtime.errors import StartError
from runtime.ids import TenantId
from runtime.mesh.keeping import Kept, State
from runtime.mesh.plan import planned_workers
from runtime.mesh.security import own_credentials

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_LEAVE_S = 30.0
_SETTLE_S = 60.0
_ANSWER_S = 2.0


class Deployment:
    """`incarnations` numbers the controllers. `host` is where they and the workers listen. `tell` hears how far the
    start is, and later the news."""

    def __init__(
        self,
        config: Config,
        tenants: dict[TenantId, bytes],
        incarnations: Callable[[], int],
        host: str,
        tell: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._tenants = tenants
        self._incarnations = incarnations
        self._host = host
        self._tell = tell
        self._credentials = own_credentials(config)
        self._port = 0
        self._steps: dict[str, str] = {}
        self._told: dict[str, Kept] = {}
        self._background: list[Future[None]] = []
        self._given_up = False

    def start(self) -> None:
        """Returns once all workers have registered and the gateway runs; raises `StartError` in the words of whoever
        could not start."""
        deadline = time.monotonic() + self._config.ray.start_s
        serving = self._in_background(self._start_serve)
        self._step("workers", "starting the controller")
        address = self._start_controller()
        deployed = self._in_background(lambda: self._deploy(serving, address))
        while not (self._workers_serve() and deployed.done()):
            if deployed.done():
                deployed.result()
            if time.monotonic() > deadline:
                raise StartError(self._overdue())
            time.sleep(_POLL_S)
        deployed.result()
        self._step("gateway", "waiting for its first answer")
        while not self._gateway_answers():
            if time.monotonic() > deadline:
                raise StartError(self._overdue())
            time.sleep(_POLL_S)
        self._step("gateway", "serving", done=True)

    def settle(self) -> None:
        """Wait until nothing of a start that failed runs on: whoever uses Ray after its shutdown ends this process."""
        self._given_up = True
        wait(self._background, _SETTLE_S)

    def _in_background(self, call: Callable[[], None]) -> "Future[None]":
        future: Future[None] = Future()

        def run() -> None:
            try:
                call()
                future.set_result(None)
            except Exception as error:  # noqa: BLE001 - the root of a thread: the error goes to whoever started it
                future.set_exception(error)

        threading.Thread(target=run, name="serve", daemon=True).start()
        self._background.append(future)
        return future

    def _overdue(self) -> str:
        free = ray.available_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
        parts = "; ".join(f"{part}: {detail}" for part, detail in self._steps.items())
        return f"ray.start_s: not ready in {self._config.ray.start_s:g} s ({parts}; the cluster has {free:g} free CPUs)"

    def attend(self) -> None:
        """Tell what happened to the workers since the last time; start the controller again when it died."""
        report = self._controller.report()
        if report is None:
            self._tell(News(text="the controller died and is started again; requests go on"))
            self._start_controller()
            return
        for kept in report:
            before = self._told.get(kept.worker)
            if before is not None and before != kept:
                self._tell(News(text=_news(kept)))
            self._told[kept.worker] = kept

    def delete(self) -> None:
        """Drain the gateway, let the workers leave, and delete everything that has our names, whoever started it."""
        namespace = self._config.namespace
        actors = ray.util.list_named_actors(all_namespaces=True)
        if any(actor["namespace"] == "serve" for actor in actors):
            serve.delete(namespace)
        ours = [actor["name"] for actor in actors if actor["namespace"] == namespace]
        if NAME in ours:
            ControllerHandle.find(namespace).stop(_LEAVE_S)
        for name in ours:
            _kill(name, namespace)

    def _start_serve(self) -> None:
        gateway = self._config.gateway
        self._step("gateway", "starting Ray Serve")
        # The processes of a cluster of our own have our environment anyway.
        options = {"runtime_env": {"env_vars": attaching()}} if self._config.ray.address else None
        try:
            serve.start(http_options={"host": gateway.host, "port": gateway.http_port}, controller_options=options)
        except TimeoutError:
            _log.warning("Ray Serve takes long to start its proxies")

    def _start_controller(self) -> str:
        arguments = (self._config, self._incarnations(), self._tenants, self._host, self._port)
        self._controller = ControllerHandle.launch(*arguments)
        address = self._controller.start(self._config.ray.start_s)
        self._port = int(address.rpartition(":")[2])
        return address

    def _deploy(self, serving: "Future[None]", address: str) -> None:
        serving.result()
        if self._given_up:
            return
        self._step("gateway", "starting")
        try:
            serve.run(
                gateway_application(self._config, address, self._tenants),
                name=self._config.namespace,
                route_prefix=self._config.gateway.http_path,
            )
        except RuntimeError as error:
            raise StartError(f"the gateway did not start: {_cause(str(error))}") from error

    def _workers_serve(self) -> bool:
        report = self._controller.report()
        if report is None:
            raise StartError("the controller died while the workers started")
        for kept in report:
            if kept.state is State.FAILED:
                raise StartError(f"worker {kept.worker} did not start: {kept.why}")
        starting = [kept.worker for kept in report if kept.state is not State.SERVING]
        waiting = f", waiting for {', '.join(starting)}" if starting else ""
        self._step("workers", f"{len(report) - len(starting)} of {len(report)} serve{waiting}", done=not starting)
        return not starting

    def _gateway_answers(self) -> bool:
        """By gRPC, naming every worker, and by HTTP through Serve's ingress."""
        addresses = local_addresses(self._config)
        try:
            with Client(addresses.grpc, self._credentials) as client:
                seen = {worker.id for worker in client.topology(timeout=_ANSWER_S).workers}
            answered = httpx.get(f"{addresses.http}/healthz", timeout=_ANSWER_S).is_success
        except (BatonError, httpx.TransportError):
            return False
        return answered and seen >= set(planned_workers(self._config))

    def _step(self, part: Literal["workers", "gateway"], detail: str, *, done: bool = False) -> None:
        """Tell how far a part is, when that changed."""
        if self._steps.get(part) != detail:
            self._steps[part] = detail
            self._tell(Step(part=part, detail=detail, done=done))


def local_addresses(config: Config) -> Addresses:
    """How this machine reaches the gateway."""
    gateway = config.gateway
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(gateway.host, gateway.host)
    path = gateway.http_path.rstrip("/")
    return Addresses(grpc=f"{host}:{gateway.grpc_port}", http=f"http://{host}:{gateway.http_port}{path}")


def _kill(name: str, namespace: str) -> None:
    try:
        ray.kill(ray.get_actor(name, namespace=namespace))
    except ValueError:
        return  # it is gone already


def _news(kept: Kept) -> str:
    match kept.state:
        case State.WAITING:
            return f"{kept.worker} died: {kept.why}"
        case State.STARTING:
            return f"{kept.worker} is started again"
        case State.SERVING:
            return f"{kept.worker} serves again"
        case State.FAILED:
            return f"{kept.worker} is given up: {kept.why}"
        case State.STOPPED:
            return f"{kept.worker} was stopped"


def _cause(message: str) -> str:
    """The error that a replica raised, out of the traceback that Serve makes its message of."""
    named = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception)): (.+)$", message, flags=re.MULTILINE)
    return named[-1][1] if named else message.strip().splitlines()[-1]

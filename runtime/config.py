"""The one configuration tree: every setting, its bounds and its default, and how a file becomes one.

The defaults are the local mesh. Says what is wrong with a file; never looks at the machine.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from runtime.errors import ConfigError
from runtime.faults import describe
from runtime.kv_settings import HandoffConfig, KvConfig
from runtime.on_neuron import NeuronConfig
from runtime.protection import AccessConfig, Clients, TlsConfig, check_listening
from runtime.sealing import SealingConfig
from runtime.section import Name
from runtime.section import Section as _Section
from runtime.simulating import SimulatedConfig as SimulatedConfig
from runtime.tiering import KvKeepingConfig

SHIPPED = "shipped"
_PATHS = (("mesh", "state"), ("tls", "folder"), ("access", "keys"), ("sealing", "key"))
Port = Annotated[int, Field(ge=1, le=65535)]
AnyPort = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class MeshConfig(_Section):
    """`state` is where the mesh keeps its secret, its lock and its logs; by default a folder of its name under
    `$XDG_STATE_HOME/baton`. `namespace` holds its Ray actors, by default `baton-<name>`."""

    name: Name = "local"
    namespace: str | None = None
    state: Path | None = None


class ModelConfig(_Section):
    """`path` is a Hugging Face directory or `shipped`; `simulated` takes its place. `name` is what requests call it,
    by default the folder's name. `dtype` of the computation and of the KV, `auto` being that of the checkpoint.
    `quantization` int8 keeps the weights of linear layers in 8 bits, rounded when the model is loaded. `tool_calls` is
    the form in which it calls tools (`runtime/domain/call_forms.py`), by default what its chat template writes."""

    path: str = Field(default=SHIPPED, min_length=1)
    name: str | None = Field(default=None, min_length=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["int8"] | None = None
    tool_calls: Literal["auto", "none", "hermes", "llama", "mistral"] = "auto"
    simulated: SimulatedConfig | None = None

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.simulated is not None and self.path != SHIPPED:
            raise ValueError("path and simulated exclude each other")
        if self.quantization is not None and (self.simulated is not None or self.dtype == "float32"):
            raise ValueError("quantization needs a model with tensors, computed in bfloat16")
        return self


class EngineConfig(_Section):
    """Each worker's engine. `kv_mib` is memory for KV pages, unless `pages` says how many; without either it is
    `kv_memory_share` of a worker's part of the free memory less its weights, by default 0.5 on a host, of which
    everybody else needs some too, and 0.8 on a GPU (`runtime/domain/pool_size.py`). `step_tokens` bounds the tokens of
    one engine step (the chunk of a prefill), `max_running` the sequences that decode together. `itl_ms` is how long
    these may wait for their next token when others are prefilled in chunks beside them, a prefill being planned to take
    no longer than they do; null lets them wait. `tensor_parallel` processes share a worker's model, its pages and its
    threads: each has some of the heads."""

    kv_mib: int | None = Field(default=None, ge=1)
    pages: int | None = Field(default=None, ge=2)
    kv_memory_share: float | None = Field(default=None, gt=0, le=1)
    page_tokens: int = Field(default=32, ge=1, le=1024)
    step_tokens: int = Field(default=512, ge=1)
    max_running: int = Field(default=32, ge=1)
    itl_ms: float | None = Field(default=250.0, gt=0, le=60_000)
    tensor_parallel: int = Field(default=1, ge=1, le=64)

    @property
    def kv_sized(self) -> bool:
        """Whether it says itself how large the pool is."""
        return self.kv_mib is not None or self.pages is not None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.kv_sized and self.kv_memory_share is not None:
            raise ValueError("kv_memory_share is for a pool of no given size: leave out kv_mib and pages")
        return self


class WorkerConfig(_Section):
    """`count` equal workers, called `<name>-0`, `<name>-1` and so on, each computing on `threads` threads, or with
    `device: neuron` on one Neuron core each, with `device: cuda` on one NVIDIA GPU each. `tensor_parallel` is for these
    workers what it is in `engine`, whose value is the default."""

    name: Name
    role: Literal["prefill", "decode"]
    count: int = Field(default=1, ge=1, le=1024)
    threads: int = Field(default=1, ge=1, le=1024)
    tensor_parallel: int | None = Field(default=None, ge=1, le=64)
    device: Literal["cpu", "neuron", "cuda"] = "cpu"
    neuron: NeuronConfig | None = None
    kv: KvConfig = KvConfig()

    @model_validator(mode="after")
    def _of_its_device(self) -> Self:
        if self.neuron is not None and self.device != "neuron":
            raise ValueError(f"neuron is for device neuron, not {self.device}")
        self.kv.check_device(self.device)
        return self

    @property
    def on_neuron(self) -> NeuronConfig | None:
        """How it uses its Neuron core; None for workers on the CPU."""
        return (self.neuron or NeuronConfig()) if self.device == "neuron" else None

    @property
    def neuron_cores(self) -> int:
        """Real cores that each of these workers holds."""
        return 0 if self.on_neuron is None or self.on_neuron.stand_in else 1

    @property
    def gpus(self) -> int:
        """GPUs that each of these workers holds."""
        return 1 if self.device == "cuda" else 0

    @property
    def on_host(self) -> bool:
        """Whether its weights and pages are in the host's memory."""
        return not self.neuron_cores and not self.gpus

    @property
    def described(self) -> str:
        """What it computes on, for people."""
        if self.on_neuron is None:
            return "cuda x1" if self.gpus else f"cpu x{self.threads}"
        return f"cpu x{self.threads} for neuron" if self.on_neuron.stand_in else "neuron x1"


class GatewayConfig(_Section):
    """`host` is where the HTTP and gRPC ports listen; the HTTP API is under `http_path`. `deadline_s` bounds a request
    that names no deadline, `max_body_mib` what a request may weigh, `drain_s` how long a stopping gateway waits for
    its streams. `placement` says how a worker is found for a turn: by what it costs where, by how busy it is, or each
    in turn."""

    replicas: int = Field(default=1, ge=1, le=256)
    host: str = Field(default="127.0.0.1", min_length=1)
    http_port: Port = 8000
    http_path: str = Field(default="/", pattern=r"^/([a-z0-9_-]+)?$")
    grpc_port: Port = 50051
    max_body_mib: int = Field(default=16, ge=1, le=1024)
    deadline_s: Seconds = 600.0
    drain_s: Seconds = 30.0
    placement: Literal["cost", "least_loaded", "round_robin"] = "cost"


class SessionsConfig(_Section):
    """`store` keeps the sessions: `sqlite` in the state folder of the mesh, for one gateway; a PostgreSQL database that
    is named as postgresql://user@host/database, for any number of them; `none` serves none. A gateway that is silent
    for `lease_s` loses its unfinished turns to another, and tries a store that does not answer for `store_grace_s`.
    """

    store: str = Field(default="sqlite", pattern=r"^(sqlite|none|postgres(ql)?://.+)$")
    lease_s: float = Field(default=5.0, ge=0.5)
    store_grace_s: Seconds = 30.0

    @field_validator("store")
    @classmethod
    def _without_secrets(cls, store: str) -> str:
        """A configuration is shown, and goes from process to process."""
        where = urlsplit(store)
        if where.password is not None or "password" in parse_qs(where.query):
            raise ValueError("holds a password, which belongs into ~/.pgpass or the file that PGPASSFILE names")
        return store


class TimingConfig(_Section):
    """When one process gives up on another.

    `lease_s`: a worker that does not renew leaves the mesh. `heartbeat_s`: a decode worker's stream is never silent
    for longer; after `silence_s` a gateway takes it as broken. `attach_s` bounds connecting. `progress_s`: a transfer
    that brings no page is given up. `grace_s`: how long a decode worker keeps a request whose gateway is away, up to
    `detached_tokens` of it. `placement_s`: how long a request waits for a decode worker. `overdue_s`: an attempt that
    brings nothing is tried elsewhere.
    """

    lease_s: Seconds = 10.0
    heartbeat_s: Seconds = 1.0
    silence_s: Seconds = 5.0
    attach_s: Seconds = 3.0
    progress_s: Seconds = 10.0
    grace_s: Seconds = 15.0
    detached_tokens: int = Field(default=4096, ge=1)
    placement_s: Seconds = 10.0
    overdue_s: Seconds = 60.0

    @model_validator(mode="after")
    def _hears_before_it_gives_up(self) -> Self:
        if self.silence_s <= self.heartbeat_s:
            raise ValueError(f"silence_s ({self.silence_s}) must be more than heartbeat_s ({self.heartbeat_s})")
        return self


class RayConfig(_Section):
    """`address` of a running cluster, host:port or `auto`, whose Serve then has the HTTP port; without one a cluster is
    started, and stopped with the mesh. The ports and `cpus` here are of a started cluster: port 0 takes any free one,
    and `cpus` is what Ray counts, by default just what the mesh needs. `start_s` bounds how long a mesh may take to be
    ready."""

    address: str | None = Field(default=None, pattern=r"^(auto|[^/:]+:\d+)$")
    dashboard_host: str = Field(default="127.0.0.1", min_length=1)
    dashboard_port: AnyPort = 8265
    cpus: int | None = Field(default=None, ge=1)
    object_store_mib: int = Field(default=80, ge=75)
    haproxy_metrics_port: AnyPort = 0
    haproxy_stats_port: AnyPort = 0
    start_s: Seconds = 180.0


class Config(_Section):
    mesh: MeshConfig = MeshConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    workers: tuple[WorkerConfig, ...] = (
        WorkerConfig(name="prefill", role="prefill", count=1),
        WorkerConfig(name="decode", role="decode", count=2),
    )
    gateway: GatewayConfig = GatewayConfig()
    sessions: SessionsConfig = SessionsConfig()
    sealing: SealingConfig = SealingConfig()
    handoff: HandoffConfig = HandoffConfig()
    kv: KvKeepingConfig = KvKeepingConfig()
    timing: TimingConfig = TimingConfig()
    tls: TlsConfig = TlsConfig()
    access: AccessConfig = AccessConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [worker.name for worker in self.workers]
        if len(set(names)) < len(names):
            raise ValueError(f"workers must have names of their own, got {', '.join(names)}")
        if not any(worker.role == "decode" for worker in self.workers):
            raise ValueError("workers must have one of role decode: nobody else gives tokens")
        if self.gateway.http_port == self.gateway.grpc_port:
            raise ValueError(f"gateway.http_port and gateway.grpc_port are both {self.gateway.grpc_port}")
        if self.gateway.replicas > 1 and self.sessions.store == "sqlite":
            raise ValueError(
                f"sessions.store is sqlite, which serves one gateway, and gateway.replicas is {self.gateway.replicas}: "
                "name a PostgreSQL database there, or none"
            )
        on_cpu = all(worker.device == "cpu" for worker in self.workers)
        if self.model.simulated is not None and not on_cpu:
            raise ValueError("model.simulated has no tensors: its workers must have device cpu")
        if self.model.quantization is not None and not on_cpu:
            raise ValueError("model.quantization: workers must have device cpu")
        for worker in self.workers:
            self._check_ranks(worker)
            self._check_pool(worker)
        check_listening(self.tls, self.clients, self.gateway.host)
        return self

    @property
    def clients(self) -> Clients:
        """How clients show who they are."""
        return self.access.clients or ("certificates" if self.tls.enabled else "open")

    @property
    def certificates(self) -> Path:
        """The folder of the members' certificates."""
        return self.tls.folder or self.state / "certs"

    @property
    def keys(self) -> Path:
        """The file of the API keys' hashes."""
        return self.access.keys or self.state / "keys.json"

    @property
    def master_key(self) -> Path:
        """The file of the key that sessions' data keys are under."""
        return self.sealing.key or self.state / "sessions.key"

    def _check_ranks(self, worker: WorkerConfig) -> None:
        ranks = self.ranks(worker)
        if ranks == 1:
            return
        field = "engine.tensor_parallel" if worker.tensor_parallel is None else f"workers.{worker.name}.tensor_parallel"
        if self.model.simulated is not None:
            raise ValueError(f"{field} is {ranks}, but model.simulated has no tensors to share")
        if self.model.quantization is not None:
            raise ValueError(f"{field} is {ranks}, but a model with model.quantization cannot be shared")
        if worker.device != "cpu":
            raise ValueError(f"{field} is {ranks}, but workers {worker.name} of device {worker.device} share no model")
        if worker.threads < ranks:
            raise ValueError(
                f"{field} is {ranks}, so workers {worker.name} must have threads of {ranks} or more, which their ranks "
                f"share; they have {worker.threads}"
            )

    def _check_pool(self, worker: WorkerConfig) -> None:
        if self.model.simulated is not None and worker.kv != KvConfig():
            raise ValueError(f"model.simulated has no tensors: workers {worker.name} must have no kv")
        if worker.neuron_cores and not self.engine.kv_sized:
            raise ValueError(
                f"engine.kv_mib is needed: workers {worker.name} are on Neuron cores, which do not tell what is free"
            )

    def ranks(self, worker: WorkerConfig) -> int:
        """How many processes share the model of each of these workers."""
        return worker.tensor_parallel or self.engine.tensor_parallel

    def described(self, worker: WorkerConfig) -> str:
        """What each of these workers computes on, for people."""
        ranks = self.ranks(worker)
        return worker.described + (f" in {ranks} ranks" if ranks > 1 else "")

    @property
    def state(self) -> Path:
        """The folder of this mesh's secret, lock and logs."""
        if self.mesh.state is not None:
            return self.mesh.state
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return home / "baton" / self.mesh.name

    @property
    def namespace(self) -> str:
        return self.mesh.namespace or f"baton-{self.mesh.name}"


def load_config(path: Path | None) -> Config:
    """The configuration of a YAML file, or the defaults. Relative paths in a file count from its folder.

    Raises `ConfigError` with one line for every field at fault.
    """
    if path is None:
        return Config()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if content is None:
        return Config()
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, got {type(content).__name__}")
    return _anchored(parse_config(content, str(path)), path.resolve().parent)


def parse_config(content: dict[str, Any], source: str) -> Config:
    """`source` opens the error's message."""
    try:
        # Strict as JSON is: a number is no text, and yet a list may become a tuple.
        return Config.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        faults = [describe(detail, Config) for detail in error.errors(include_url=False)]
        raise ConfigError(f"{source}: " + "\n".join(faults)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error


def _anchored(config: Config, folder: Path) -> Config:
    model = config.model
    if model.path != SHIPPED:
        model = model.model_copy(update={"path": str(folder / Path(model.path).expanduser())})
    workers = tuple(_anchored_worker(worker, folder) for worker in config.workers)
    anchored: dict[str, object] = {"model": model, "workers": workers, "kv": config.kv.anchored(folder)}
    for section, field in _PATHS:
        settings = getattr(config, section)
        if (path := getattr(settings, field)) is not None:
            anchored[section] = settings.model_copy(update={field: folder / path.expanduser()})
    return config.model_copy(update=anchored)


def _anchored_worker(worker: WorkerConfig, folder: Path) -> WorkerConfig:
    if worker.neuron is None or worker.neuron.cache is None:
        return worker
    neuron = worker.neuron.model_copy(update={"cache": folder / worker.neuron.cache.expanduser()})
    return worker.model_copy(update={"neuron": neuron})

"""What a configuration file may say, and how it is told off."""

import re
from pathlib import Path

import pytest

from runtime.config import SHIPPED, Config, load_config
from runtime.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "mesh.yaml"
    file.write_text(text)
    return load_config(file)


def test_the_defaults_are_the_local_mesh() -> None:
    assert load_config(CONFIGS / "local.yaml") == load_config(None)


def test_every_shipped_configuration_loads() -> None:
    names = {path.stem: load_config(path).mesh.name for path in CONFIGS.glob("*.yaml")}
    assert names == {stem: stem for stem in names}
    assert {"local", "simulated", "docker"} <= names.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: [{name: d, role: decode, thread: 2}]", "workers.0.thread: unknown key; did you mean threads?"),
        ("gatway: {}", "gatway: unknown key; did you mean gateway?"),
        ("model: {simulated: {base: 1}}", "model.simulated.base: unknown key; did you mean base_ms?"),
        ("engine: {kv_mib: '256'}", "engine.kv_mib: must be a valid integer, got '256'"),
        ("gateway: {http_port: 70000}", "gateway.http_port: must be less than or equal to 65535, got 70000"),
        ("engine: {page_tokens: 0}", "engine.page_tokens: must be greater than or equal to 1, got 0"),
        ("timing: {lease_s: .nan}", "timing.lease_s: must be a finite number, got nan"),
        ("workers: [{name: d, role: draft}]", "workers.0.role: must be 'prefill' or 'decode', got 'draft'"),
        ("workers: [{role: decode}]", "workers.0.name: is required"),
        ("workers: [{name: p, role: prefill}]", "workers must have one of role decode"),
        ("workers: [{name: d, role: decode}, {name: d, role: prefill}]", "workers must have names of their own"),
        ("model: {path: x, simulated: {}}", "model: path and simulated exclude each other"),
        ("timing: {silence_s: 0.5}", "silence_s (0.5) must be more than heartbeat_s (1.0)"),
        ("gateway: {http_port: 9000, grpc_port: 9000}", "gateway.http_port and gateway.grpc_port are both 9000"),
        (
            "workers: [{name: d, role: decode, neuron: {stand_in: true}}]",
            "workers.0: neuron is for device neuron, not cpu",
        ),
        (
            "workers: [{name: d, role: decode, device: neuron, neuron: {buckets: [{tokens: 8, past_pages: 0}]}}]",
            "workers.0.neuron: buckets: one at least must have past_pages",
        ),
        (
            "workers: [{name: d, role: decode, device: neuron, neuron: {buckets: ["
            "{tokens: 8, past_pages: 1}, {tokens: 8, past_pages: 1}]}}]",
            "workers.0.neuron: buckets must differ",
        ),
        (
            "workers: [{name: d, role: decode, device: neuron, neuron: {bucket: []}}]",
            "workers.0.neuron.bucket: unknown key; did you mean buckets?",
        ),
        (
            "{model: {simulated: {}}, workers: [{name: d, role: decode, device: neuron}]}",
            "model.simulated has no tensors: its workers must have device cpu",
        ),
        (
            "workers: [{name: d, role: decode, device: cuda, kv: {layout: nxdi}}]",
            "workers.0: kv.layout and kv.block_tokens are for device cpu, not cuda",
        ),
        ("workers: [{name: d, role: decode, kv: {dtype: float16}}]", "workers.0.kv.dtype: must be 'float32' or"),
        (
            "{model: {simulated: {}}, workers: [{name: d, role: decode, kv: {block_tokens: 8}}]}",
            "model.simulated has no tensors: workers d must have no kv",
        ),
        ("gateway: {host: 0.0.0.0}", "gateway.host: 0.0.0.0 is no loopback: set tls.enabled, or tls.plaintext"),
        (
            "{gateway: {host: mesh.example.com}, tls: {plaintext: http}}",
            "gateway.host: mesh.example.com is no loopback",
        ),
        ("{gateway: {host: '::'}, tls: {enabled: true}}", "gateway.host: the HTTP API, which has no TLS of its own"),
        ("access: {clients: certificates}", "access.clients: certificates need tls.enabled"),
        ("tls: {plain: http}", "tls.plain: unknown key; did you mean plaintext?"),
        ("access: {tenants: [Acme]}", "access.tenants.0: String should match pattern"),
        ("mesh: {name: '../up'}", "mesh.name: String should match pattern"),
        ("gateway: {replicas: 2}", "sessions.store is sqlite, which serves one gateway, and gateway.replicas is 2"),
        ("sessions: {store: redis}", "sessions.store: String should match pattern"),
        (
            "engine: {kv_mib: 256, kv_memory_share: 0.5}",
            "engine: kv_memory_share is for a pool of no given size: leave out kv_mib and pages",
        ),
        ("engine: {kv_memory_share: 1.5}", "engine.kv_memory_share: must be less than or equal to 1, got 1.5"),
        ("engine: {kv_memory_share: 0}", "engine.kv_memory_share: must be greater than 0, got 0"),
        (
            "workers: [{name: p, role: prefill, device: neuron}, {name: d, role: decode}]",
            "engine.kv_mib is needed: workers p are on Neuron cores, which do not tell what is free",
        ),
        ("- a\n- b", "must be a mapping of sections, got list"),
        ("a: [", "is not YAML"),
        ("a: &a {b: *a}", "Circular reference"),
    ],
)
def test_a_bad_file_is_refused_by_the_field_at_fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert message in str(refused.value)
    assert str(tmp_path / "mesh.yaml") in str(refused.value)


@pytest.mark.parametrize(
    "store", ["postgresql://baton:s3cret@db/sessions", "postgres://baton@db/sessions?password=s3cret"]
)
def test_a_password_is_not_taken_and_not_shown(tmp_path: Path, store: str) -> None:
    with pytest.raises(
        ConfigError, match=r"sessions\.store: holds a password, which belongs into ~/\.pgpass"
    ) as refused:
        load(tmp_path, f"sessions: {{store: '{store}'}}")
    assert "s3cret" not in str(refused.value)


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, "engine: {kv_mb: 1, page_tokens: x}")
    assert "engine.kv_mb: unknown key; did you mean kv_mib?" in str(refused.value)
    assert "engine.page_tokens: must be a valid integer" in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(tmp_path / "mesh.yaml")


def test_workers_hold_neuron_cores_only_where_they_use_them(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "engine: {kv_mib: 256}\n"
        "workers: [{name: a, role: prefill, device: neuron}, {name: b, role: decode},"
        " {name: c, role: prefill, device: neuron, neuron: {stand_in: true, cache: kept}}]",
    )
    assert [worker.neuron_cores for worker in config.workers] == [1, 0, 0]
    assert [worker.described for worker in config.workers] == ["neuron x1", "cpu x1", "cpu x1 for neuron"]
    assert config.workers[2].neuron is not None
    assert config.workers[2].neuron.cache == tmp_path / "kept"


def test_a_pool_of_workers_may_have_more_ranks_than_the_others(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "engine: {tensor_parallel: 2}\n"
        "workers: [{name: a, role: prefill, threads: 4, tensor_parallel: 4}, {name: b, role: decode, threads: 2},"
        " {name: c, role: decode, tensor_parallel: 1}]",
    )
    assert [config.ranks(worker) for worker in config.workers] == [4, 2, 1]
    assert [config.described(worker) for worker in config.workers] == [
        "cpu x4 in 4 ranks",
        "cpu x2 in 2 ranks",
        "cpu x1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: {tensor_parallel: 0}", "engine.tensor_parallel: must be greater than or equal to 1, got 0"),
        (
            "engine: {tensor_parallel: 2}",
            "engine.tensor_parallel is 2, so workers prefill must have threads of 2 or more, which their ranks share; "
            "they have 1",
        ),
        (
            "workers: [{name: d, role: decode, threads: 2, tensor_parallel: 3}]",
            "workers.d.tensor_parallel is 3, so workers d must have threads of 3 or more",
        ),
        (
            "engine: {tensor_parallel: 2}\nmodel: {simulated: {}}",
            "engine.tensor_parallel is 2, but model.simulated has no tensors to share",
        ),
        (
            "workers: [{name: p, role: prefill, device: neuron, threads: 2, tensor_parallel: 2},"
            " {name: d, role: decode}]",
            "workers.p.tensor_parallel is 2, but workers p of device neuron share no model",
        ),
    ],
)
def test_ranks_that_cannot_be_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(tmp_path, text)


@pytest.mark.parametrize("store", ["none", "postgresql://baton@db/sessions"])
def test_more_gateways_need_a_store_that_serves_them_or_none(tmp_path: Path, store: str) -> None:
    config = load(tmp_path, f"{{gateway: {{replicas: 2}}, sessions: {{store: '{store}'}}}}")
    assert (config.gateway.replicas, config.sessions.store) == (2, store)


def test_an_empty_file_is_the_local_mesh(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing yet\n") == Config()


@pytest.mark.parametrize("name", ["local", "simulated", "docker"])
def test_a_configuration_survives_the_way_to_another_process(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_relative_paths_count_from_the_folder_of_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "model: {path: models/tiny}\nmesh: {state: state}")
    assert config.model.path == str(tmp_path / "models" / "tiny")
    assert config.state == tmp_path / "state"
    assert load(tmp_path, "model: {path: shipped}").model.path == SHIPPED


def test_who_may_ask_follows_from_tls_unless_it_is_said(tmp_path: Path) -> None:
    assert load(tmp_path, "").clients == "open"
    assert load(tmp_path, "tls: {enabled: true}").clients == "certificates"
    assert load(tmp_path, "{tls: {enabled: true}, access: {clients: keys}}").clients == "keys"
    for allowed in (
        "{gateway: {host: 10.0.0.1}, tls: {plaintext: everywhere}}",
        "{gateway: {host: 0.0.0.0}, tls: {enabled: true, plaintext: http}}",
        "gateway: {host: localhost}",
        "gateway: {host: '::1'}",
    ):
        load(tmp_path, allowed)


def test_certificates_and_keys_are_kept_in_the_state_unless_a_place_is_named(tmp_path: Path) -> None:
    kept = load(tmp_path, "mesh: {state: state}")
    assert (kept.certificates, kept.keys) == (tmp_path / "state" / "certs", tmp_path / "state" / "keys.json")
    named = load(tmp_path, "{tls: {folder: pki}, access: {keys: who.json}}")
    assert (named.certificates, named.keys) == (tmp_path / "pki", tmp_path / "who.json")


def test_the_state_is_kept_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Config().state == tmp_path / "baton" / "local"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Config().state == Path("/home/somebody/.local/state/baton/local")

"""Which models there are, and whether the gateway is healthy."""

import openai
import pytest

from runtime.domain.routing import PREFILL
from tests.services.openai.one_worker import CREATED, MODEL, SPEC, one_worker
from tests.services.openai.serving import serving


async def test_models_are_listed_and_found_by_name() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        (listed,) = (await api.client.models.list()).data
        found = await api.client.models.retrieve(MODEL)
        assert listed == found
        assert (found.id, found.created, found.owned_by) == (MODEL, CREATED, "baton")
        assert (found.model_extra or {})["max_model_len"] == SPEC.max_tokens
        with pytest.raises(openai.NotFoundError) as missing:
            await api.client.models.retrieve("org/other")
    assert missing.value.code == "model_not_found"
    assert MODEL in missing.value.message


async def test_healthy_is_a_gateway_that_knows_a_decode_worker() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        healthy = await api.http.get("/healthz")
        mesh.worker.serve(version=2, roles=(PREFILL,))
        await mesh.worker.shown()
        alone = await api.http.get("/healthz")
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok", "decode_workers": 1})
    assert alone.status_code == 503
    assert alone.headers["retry-after"] == "1"
    assert alone.json()["error"]["code"] == "unavailable"


async def test_unknown_paths_and_methods_are_refused_in_openais_shape() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        unknown = await api.http.get("/v1/nothing")
        wrong = await api.http.get("/v1/chat/completions")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert unknown.headers["x-request-id"]


async def test_a_request_id_is_echoed_or_made() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        named = await api.http.get("/v1/models", headers={"x-request-id": "mine-7"})
        unfit = await api.http.get("/v1/models", headers={"x-request-id": "two words"})
        body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
        posted = await api.http.post("/v1/completions", json=body, headers={"x-request-id": "mine-8"})
    assert named.headers["x-request-id"] == "mine-7"
    assert unfit.headers["x-request-id"].startswith("req-")
    assert posted.headers["x-request-id"] == "mine-8"

"""Who belongs to the mesh: registering, renewing, leaving, and a lease that runs out."""

from dataclasses import replace
from typing import Any

import pytest

from runtime.domain.membership import Membership
from runtime.domain.messages import Worker
from runtime.errors import Incompatible
from runtime.ids import BootId, WorkerId

A = Worker(WorkerId("a"), BootId("boot-1"), "decode", "a:1", "model", "kv", "serving", 96, 4, "cpu x1")
B = replace(A, id=WorkerId("b"), boot=BootId("boot-2"), address="b:1")


@pytest.fixture
def members() -> Membership:
    return Membership(incarnation=7, lease_s=10.0)


def test_a_view_shows_who_registered_and_grows_in_version(members: Membership) -> None:
    versions = [members.view().version]
    for worker in (A, B):
        members.register(worker, now=0.0)
        versions.append(members.view().version)
    assert members.view().workers == (A, B)
    assert members.view().incarnation == 7
    assert versions == sorted(set(versions))


def test_only_a_new_generation_is_news(members: Membership) -> None:
    assert members.register(A, now=0.0)
    assert not members.register(A, now=1.0)
    assert members.register(replace(A, boot=BootId("boot-9")), now=2.0)


def test_a_renewed_worker_stays_and_a_silent_one_goes(members: Membership) -> None:
    members.register(A, now=0.0)
    members.register(B, now=0.0)
    members.register(A, now=9.0)
    assert members.expire(now=9.9) == ()
    assert members.expire(now=10.0) == (B,)
    assert members.view().workers == (A,)
    assert members.expire(now=10.0) == ()


def test_only_its_own_generation_can_take_a_worker_out(members: Membership) -> None:
    members.register(A, now=0.0)
    assert not members.leave(A.id, BootId("an earlier one"))
    assert members.leave(A.id, A.boot)
    assert not members.leave(A.id, A.boot)
    assert members.view().workers == ()


@pytest.mark.parametrize("field", ["model", "kv_fingerprint", "serving_fingerprint", "page_tokens"])
def test_a_worker_that_serves_something_else_is_refused_by_field(members: Membership, field: str) -> None:
    other: dict[str, Any] = {field: 8 if field == "page_tokens" else "other"}
    members.register(A, now=0.0)
    before = members.view()
    with pytest.raises(Incompatible, match=f"worker b: {field} is ") as refused:
        members.register(replace(B, **other), now=0.0)
    assert refused.value.field == field
    assert members.view() == before


def test_the_only_worker_may_come_back_with_another_model(members: Membership) -> None:
    members.register(A, now=0.0)
    assert members.register(replace(A, boot=BootId("boot-3"), model="other"), now=1.0)

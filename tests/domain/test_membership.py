"""Who belongs to the mesh: registering, renewing, leaving, and a lease that runs out."""

from dataclasses import replace
from typing import Any

import pytest

from runtime.domain.membership import MAX_REFUSED, Belief, Membership
from runtime.domain.messages import PageForm, View, Worker
from runtime.domain.spec import Kind, LayerGroup
from runtime.errors import FailedPrecondition, Incompatible, NotFound
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


@pytest.mark.parametrize("field", ["model", "kv_fingerprint", "serving_fingerprint", "page_tokens", "frame_version"])
def test_a_worker_that_serves_something_else_is_refused_by_field(members: Membership, field: str) -> None:
    other: dict[str, Any] = {field: 8 if field in ("page_tokens", "frame_version") else "other"}
    members.register(A, now=0.0)
    before = members.view().version
    with pytest.raises(Incompatible, match=f"worker b: {field} is ") as refused:
        members.register(replace(B, **other), now=0.0)
    assert refused.value.field == field
    view = members.view()
    assert (view.workers, view.version > before) == ((A,), True)
    assert [(each.worker, each.boot, each.field) for each in view.refused] == [(B.id, B.boot, field)]
    assert f"{field} is" in view.refused[0].reason


def test_the_only_worker_may_come_back_with_another_model(members: Membership) -> None:
    members.register(A, now=0.0)
    assert members.register(replace(A, boot=BootId("boot-3"), model="other"), now=1.0)


def test_while_a_controller_settles_the_more_count_and_not_who_came_first() -> None:
    members = Membership(incarnation=8, lease_s=10.0, settling=True)
    stranger = replace(A, id=WorkerId("stranger"), boot=BootId("boot-7"), model="other")
    members.register(stranger, now=0.0)
    with pytest.raises(Incompatible):
        members.register(A, now=1.0)
    members.register(B, now=1.0)
    assert members.view().workers == (B,)
    assert [refused.worker for refused in members.view().refused] == [A.id, stranger.id]
    members.register(A, now=2.0)
    with pytest.raises(Incompatible, match="worker stranger: model is other"):
        members.register(stranger, now=3.0)
    assert members.view().workers == (B, A)


def test_once_it_has_settled_no_number_of_strangers_takes_a_mesh_over() -> None:
    members = Membership(incarnation=8, lease_s=10.0, settling=True)
    members.register(A, now=0.0)
    members.settle()
    for number in range(3):
        with pytest.raises(Incompatible):
            members.register(replace(B, id=WorkerId(f"b-{number}"), model="other"), now=0.0)
    assert members.view().workers == (A,)


def test_who_was_refused_is_forgotten_when_it_fits_and_after_a_while(members: Membership) -> None:
    members.register(A, now=0.0)
    for worker in (B, replace(B, id=WorkerId("c"))):
        with pytest.raises(Incompatible):
            members.register(replace(worker, model="other"), now=0.0)
    members.register(B, now=1.0)
    assert [refused.worker for refused in members.view().refused] == ["c"]
    members.expire(now=99.9)
    assert members.view().refused
    members.expire(now=100.0)
    assert not members.view().refused


def test_only_so_many_who_were_refused_are_remembered(members: Membership) -> None:
    members.register(A, now=0.0)
    for number in range(MAX_REFUSED + 2):
        with pytest.raises(Incompatible):
            members.register(replace(B, id=WorkerId(f"b-{number}"), model="other"), now=0.0)
    remembered = [refused.worker for refused in members.view().refused]
    assert (len(remembered), remembered[0], remembered[-1]) == (MAX_REFUSED, "b-2", f"b-{MAX_REFUSED + 1}")


def test_a_worker_that_is_drained_is_shown_so_until_it_is_gone_and_its_next_generation_is_not(
    members: Membership,
) -> None:
    members.register(A, now=0.0)
    members.register(B, now=0.0)
    members.drain(A.id, until=9.0)
    assert [worker.draining for worker in members.view().workers] == [True, False]
    members.register(A, now=1.0)
    assert [worker.draining for worker in members.view().workers] == [True, False]
    assert (members.leaves_at(A.boot), members.leaves_at(B.boot)) == (9.0, None)
    members.leave(A.id, A.boot)
    assert members.leaves_at(A.boot) is None
    again = replace(A, boot=BootId("boot-3"))
    members.register(again, now=2.0)
    assert not any(worker.draining for worker in members.view().workers)


def test_a_worker_says_that_it_drains_to_a_controller_that_does_not_know(members: Membership) -> None:
    members.register(replace(A, draining=True), now=0.0)
    assert members.view().workers[0].draining


def test_the_last_that_decodes_and_who_is_not_there_cannot_be_drained(members: Membership) -> None:
    members.register(A, now=0.0)
    prefill = replace(B, role="prefill")
    members.register(prefill, now=0.0)
    with pytest.raises(FailedPrecondition, match="a is the last decode worker"):
        members.drain(A.id, until=9.0)
    with pytest.raises(NotFound, match="no worker c serves"):
        members.drain(WorkerId("c"), until=9.0)
    members.drain(prefill.id, until=9.0)


# What a watcher believes


def view(incarnation: int, version: int, *workers: Worker, settling: bool = False) -> View:
    return View(incarnation, version, workers, settling)


def test_a_new_controller_that_settles_removes_nobody_until_it_has_settled() -> None:
    belief = Belief()
    assert belief.take(view(1, 5, A, B)).workers == (A, B)
    assert belief.take(view(2, 0, settling=True)).workers == (A, B)
    assert belief.take(view(2, 1, B, settling=True)).workers == (B, A)
    assert belief.take(view(2, 2, B)).workers == (B,)
    assert belief.take(view(2, 3, B, settling=True)).workers == (B,), "what was let go does not come back"


def test_a_worker_that_registered_and_left_is_gone_though_the_controller_settles() -> None:
    belief = Belief()
    belief.take(view(1, 5, A, B))
    belief.take(view(2, 1, A, settling=True))
    assert belief.take(view(2, 2, settling=True)).workers == (B,)


def test_a_stranger_that_comes_first_to_a_new_controller_is_not_believed_in() -> None:
    belief = Belief()
    belief.take(view(1, 5, A, B))
    stranger = replace(A, id=WorkerId("stranger"), boot=BootId("boot-7"), model="other")
    assert belief.take(view(2, 1, stranger, settling=True)).workers == (A, B)


def test_a_new_generation_takes_the_place_of_the_one_that_was_kept() -> None:
    belief = Belief()
    belief.take(view(1, 5, A, B))
    again = replace(A, boot=BootId("boot-3"))
    assert belief.take(view(2, 1, again, settling=True)).workers == (again, B)


def test_what_was_kept_lives_through_two_controllers_that_settle() -> None:
    belief = Belief()
    belief.take(view(1, 5, A, B))
    belief.take(view(2, 0, settling=True))
    belief.take(view(3, 0, settling=True))
    assert belief.take(view(3, 1, A, settling=True)).workers == (A, B)


def test_an_older_view_says_nothing() -> None:
    belief = Belief()
    newer = belief.take(view(2, 3, A))
    for older in (view(2, 2, B), view(1, 99, B)):
        assert belief.take(older) is newer
    assert belief.take(view(2, 4)).workers == ()


KEYS, LATENTS = LayerGroup((0,), 2, 4), LayerGroup((1,), 1, 8, Kind.LATENT)
PREFILL = replace(B, role="prefill")


def of_pages(worker: Worker, dtype: str, *dtypes: str, groups: tuple[LayerGroup, ...] = ()) -> Worker:
    return replace(worker, pages=PageForm(dtype, dtypes, groups))


@pytest.mark.parametrize("first", ["prefill", "decode"])
def test_a_pair_whose_pages_cannot_become_each_others_is_refused_whoever_comes_first(
    members: Membership, first: str
) -> None:
    pair = of_pages(PREFILL, "bfloat16"), of_pages(A, "float32", "float16")
    here, new = pair if first == "prefill" else reversed(pair)
    members.register(here, now=0.0)
    with pytest.raises(Incompatible, match="b prefills in bfloat16, and a takes float32 and float16 alone") as refused:
        members.register(new, now=0.0)
    assert refused.value.field == "pages.dtype"
    assert members.view().workers == (here,)


def test_what_a_decode_worker_takes_is_its_own_word(members: Membership) -> None:
    members.register(of_pages(A, "float32", "bfloat16"), now=0.0)
    members.register(of_pages(PREFILL, "bfloat16"), now=0.0)
    members.register(of_pages(replace(A, id=WorkerId("c")), "bfloat16"), now=0.0)
    assert len(members.view().workers) == 3
    with pytest.raises(Incompatible, match="c takes bfloat16 alone"):
        members.register(of_pages(replace(PREFILL, id=WorkerId("d")), "float32", "bfloat16"), now=0.0)


def test_workers_of_one_role_may_differ_in_data_type_and_one_that_does_not_say_fits(members: Membership) -> None:
    members.register(of_pages(A, "float32"), now=0.0)
    members.register(of_pages(B, "bfloat16"), now=0.0)
    members.register(replace(PREFILL, id=WorkerId("silent")), now=0.0)
    assert len(members.view().workers) == 3


def test_other_groups_of_layers_are_refused_by_name(members: Membership) -> None:
    members.register(of_pages(A, "float32", groups=(KEYS, LATENTS)), now=0.0)
    windowed = replace(KEYS, window=8)
    with pytest.raises(Incompatible, match="1 layers of kv 2 x 4 within 8 tokens, 1 layers of latent") as refused:
        members.register(of_pages(B, "float32", groups=(windowed, LATENTS)), now=0.0)
    assert refused.value.field == "pages.groups"
    members.register(of_pages(B, "float32", groups=(KEYS, LATENTS)), now=0.0)

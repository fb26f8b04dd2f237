"""Pages in parts: every cut by heads and by groups is joined again, whoever holds which head."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.domain.spec import Kind, LayerGroup, ModelSpec
from runtime.domain.steps import Frame, Part
from runtime.errors import DataCorrupt
from runtime.ids import PageId
from runtime.kv.frames import FrameCodec
from runtime.kv.parts import Joined, cut_heads, split_groups
from runtime.model.share import HeadSplit
from tests.kv.test_frames import SPEC
from tests.scale import scaled

RANKS = (1, 2, 4, 8)
GROUPS = st.lists(
    st.builds(
        LayerGroup,
        st.just((0,)),
        st.integers(1, 4),
        st.integers(1, 5),
        st.sampled_from(Kind),
        st.sampled_from((0, 16)),
    ).map(lambda group: replace(group, heads=1) if group.kind is Kind.LATENT else group),
    min_size=1,
    max_size=4,
).map(lambda groups: tuple(replace(group, layers=(2 * number, 2 * number + 1)) for number, group in enumerate(groups)))


def page(spec: ModelSpec, tokens: int, index: int = 5) -> Frame:
    payload = random.Random(tokens).randbytes(spec.token_bytes * tokens)
    return Frame(PageId(index.to_bytes(16)), index, tokens, payload)


def of_heads(heads: int) -> ModelSpec:
    return replace(SPEC, kv_heads=heads)


@pytest.mark.parametrize(
    ("heads", "there"),
    [(heads, ranks) for heads in (1, 2, 4, 8) for ranks in RANKS if HeadSplit(heads, ranks).possible],
)
def test_what_the_ranks_of_a_sender_hold_makes_the_page_and_becomes_what_those_of_a_receiver_hold(
    heads: int, there: int
) -> None:
    spec = of_heads(heads)
    whole, codec = page(spec, 7), FrameCodec(spec)
    for here in RANKS:
        split, joined = HeadSplit(heads, here), Joined(spec, 1)
        parts = [cut_heads(whole, spec, range(*split.of(rank).indices(heads))) for rank in split.tellers]
        assert sum(len(part.payload) for part in parts) == len(whole.payload), "each head is told once"
        made = [joined.add(codec.decode(codec.encode(part))) for part in parts]
        assert made == [None] * (len(parts) - 1) + [whole]
        assert len(joined) == 0
    theirs = HeadSplit(heads, there)
    for rank in range(there):
        held = cut_heads(whole, spec, range(*theirs.of(rank).indices(heads)))
        assert held.part == Part(0, theirs.of(rank).start, theirs.held)
        assert len(held.payload) == len(whole.payload) * theirs.held // heads


@settings(max_examples=scaled(60, 1000), deadline=None)
@given(groups=GROUPS, tokens=st.integers(1, SPEC.page_tokens), source=st.randoms(use_true_random=False))
def test_any_cut_is_joined_in_any_order(groups: tuple[LayerGroup, ...], tokens: int, source: random.Random) -> None:
    spec = replace(SPEC, groups=groups)
    codec, whole, parts = FrameCodec(spec), page(spec, tokens), list[Frame]()
    for part in split_groups(whole, spec):
        group = groups[0 if part.part is None else part.part.group]
        cuts = sorted({0, group.heads, *(source.randrange(group.heads + 1) for _ in range(2))})
        parts += [cut_heads(part, spec, range(*ends)) for ends in itertools.pairwise(cuts)]
    source.shuffle(parts)
    joined = Joined(spec, 1)
    made = [joined.add(codec.decode(codec.encode(part))) for part in parts]
    assert [frame for frame in made if frame is not None] == [whole]
    assert made[-1] == whole


def test_heads_that_come_again_change_nothing_and_cost_nothing() -> None:
    spec = of_heads(4)
    whole, other = page(spec, 3), replace(page(spec, 3), payload=bytes(3 * spec.token_bytes))
    joined = Joined(spec, 1)
    assert joined.add(cut_heads(whole, spec, range(2))) is None
    assert joined.add(cut_heads(other, spec, range(2))) is None
    assert joined.add(cut_heads(other, spec, range(1))) is None
    overlapping = cut_heads(whole, spec, range(1, 4))
    assert joined.add(overlapping) == whole


def test_pages_are_joined_apart_by_identity_place_and_tokens() -> None:
    spec = of_heads(2)
    joined, one = Joined(spec, 4), page(spec, 3)
    pages = [one, replace(one, index=6), page(spec, 4), replace(one, page=PageId(b"x" * 16))]
    assert [joined.add(cut_heads(each, spec, range(1))) for each in pages] == [None] * 4
    assert [joined.add(cut_heads(each, spec, range(1, 2))) for each in pages] == pages


def test_no_more_pages_are_open_than_were_asked_for() -> None:
    spec = of_heads(2)
    joined = Joined(spec, 2)
    for index in (0, 1):
        joined.add(cut_heads(page(spec, 3, index), spec, range(1)))
    with pytest.raises(DataCorrupt, match="more than 2 pages"):
        joined.add(cut_heads(page(spec, 3, 2), spec, range(1)))
    assert joined.add(cut_heads(page(spec, 3, 1), spec, range(1, 2))) == page(spec, 3, 1)
    assert joined.add(cut_heads(page(spec, 3, 2), spec, range(1))) is None


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 99])
def test_layers_are_cut_into_groups_that_make_the_page_again(groups: int) -> None:
    layers = replace(SPEC, layers=5)
    cut = layers.cut(groups)
    assert len(cut.page_groups) == min(groups, 5)
    assert [layer for group in cut.page_groups for layer in group.layers] == list(range(5))
    assert (cut.token_bytes, cut.page_bytes) == (layers.token_bytes, layers.page_bytes)
    whole, joined = page(layers, 6), Joined(cut, 1)
    parts = [FrameCodec(cut).decode(FrameCodec(cut).encode(part)) for part in split_groups(whole, cut)]
    assert [made for part in parts if (made := joined.add(part)) is not None] == [whole]
    assert [again for part in parts for again in split_groups(part, cut)] == parts, "a part is not cut again"


def test_layers_that_are_in_groups_already_stay_in_them() -> None:
    spec = replace(SPEC, groups=(LayerGroup((0, 2), 1, 2), LayerGroup((1,), 2, 2)))
    assert spec.cut(2) is spec

"""Pages at rest: only their tenant opens them, and only as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import DataCorrupt
from runtime.kv.tiers.sealing import SEAL_BYTES, seal, unseal
from tests.kv.tiers.pages import OTHER_SALT, SALT, ident

CONTENT = bytes(range(200))
SEALED = seal(CONTENT, ident(1), "a name", SALT)


def test_what_was_sealed_is_opened() -> None:
    assert unseal(SEALED, ident(1), "a name", SALT) == CONTENT
    assert len(SEALED) == len(CONTENT) + SEAL_BYTES


def test_no_part_of_it_is_to_be_read_and_the_same_looks_different_each_time() -> None:
    assert not any(CONTENT[place : place + 8] in SEALED for place in range(0, 192, 8))
    assert seal(CONTENT, ident(1), "a name", SALT)[16:] != SEALED[16:]


@pytest.mark.parametrize(
    ("page", "name", "salt"),
    [(ident(2), "a name", SALT), (ident(1), "another", SALT), (ident(1), "a name", OTHER_SALT)],
)
def test_it_opens_for_no_other_page_name_or_tenant(page: bytes, name: str, salt: bytes) -> None:
    with pytest.raises(DataCorrupt):
        unseal(SEALED, page, name, salt)  # type: ignore[arg-type]


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_no_byte_of_it_may_be_another(place: int, change: int) -> None:
    spoilt = bytearray(SEALED)
    spoilt[place] ^= change
    with pytest.raises(DataCorrupt):
        unseal(bytes(spoilt), ident(1), "a name", SALT)


@given(st.integers(0, len(SEALED) - 1))
def test_it_may_not_end_early(length: int) -> None:
    with pytest.raises(DataCorrupt):
        unseal(SEALED[:length], ident(1), "a name", SALT)

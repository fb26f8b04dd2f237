"""The tenant's secret: made once, kept private, never guessed at."""

from pathlib import Path

import pytest

from runtime.errors import StartError
from runtime.ids import TenantId
from runtime.mesh.tenants import open_tenants

NAMES = ("default",)


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made = open_tenants(tmp_path / "state", NAMES)
    assert open_tenants(tmp_path / "state", NAMES) == made
    assert len(made[TenantId("default")]) == 32
    (file,) = (tmp_path / "state").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_meshes_have_secrets_of_their_own(tmp_path: Path) -> None:
    assert open_tenants(tmp_path / "one", NAMES) != open_tenants(tmp_path / "two", NAMES)


def test_a_damaged_secret_is_refused_and_not_replaced(tmp_path: Path) -> None:
    open_tenants(tmp_path, NAMES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"short")
    with pytest.raises(StartError, match="holds 5 bytes"):
        open_tenants(tmp_path, NAMES)
    assert file.read_bytes() == b"short"


def test_a_state_folder_that_cannot_be_made_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    with pytest.raises(StartError, match=r"mesh\.state: .*state"):
        open_tenants(tmp_path / "state", NAMES)

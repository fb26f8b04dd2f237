"""The settings of what is kept behind pools."""

from pathlib import Path

import pytest

from runtime.config import Config, load_config, parse_config
from runtime.errors import ConfigError


def test_nothing_is_kept_unless_it_is_asked_for() -> None:
    tiers = Config().kv.tiers
    assert (tiers.host_mib, tiers.cold) == (0, None)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("pages", "{folder}/pages"), ("/var/pages", "/var/pages"), ("local", "local"), ("s3://bucket/a", "s3://bucket/a")],
)
def test_a_relative_folder_counts_from_the_file(tmp_path: Path, written: str, meant: str) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(f"kv:\n  tiers:\n    cold: {written}\n")
    assert load_config(file).kv.tiers.cold == meant.format(folder=tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("cold", "gs://bucket"), ("cold", "s3://"), ("cold", "s3://key:secret@bucket"), ("cold", ""), ("keep_h", 0)],
)
def test_what_can_be_no_setting_is_refused_by_its_name(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"kv\.tiers\.{setting}"):
        parse_config({"kv": {"tiers": {setting: value}}}, "test")

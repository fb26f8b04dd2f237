"""The settings of how sessions are sealed."""

from pathlib import Path

from runtime.section import Section


class SealingConfig(Section):
    """`key` is the file of the master key, under which each session has a data key of its own: 32 bytes that only the
    owner may read, made where there are none, by default `sessions.key` in the mesh's state. All gateways of a mesh
    need the same one, and without it nothing that `sessions.store` holds can be read."""

    key: Path | None = None

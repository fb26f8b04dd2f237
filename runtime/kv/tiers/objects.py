"""A store of objects, a folder or a bucket, as the cold tier needs it. Knows no page; its methods block."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from runtime.errors import NotFound, StartError, Unavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

S3 = "s3://"
_LISTED_AT_ONCE = 1000
_ABANDONED_S = 3600
# What a folder leaves of its disk to others, who may not do without as we can: a twentieth, and up to so much.
_SPARED_BYTES = 2 << 30
_SPARED_PARTS = 20


@dataclass(frozen=True, slots=True)
class Listed:
    """An object; `modified` is seconds of the store's own clock."""

    name: str
    size: int
    modified: float


class Objects(Protocol):
    """All raise `Unavailable` when the store does not do it: full, slow, refusing, gone."""

    place: str

    def get(self, name: str) -> memoryview:
        """Raises `NotFound` when there is none."""

    def create(self, name: str, content: bytes) -> None:
        """Whole or not at all; one that is there already stays."""

    def delete(self, names: Sequence[str]) -> None:
        """Those that are there, and what writers that died left unfinished of them."""

    def list(self) -> Iterator[Listed]: ...

    def now(self, prefix: str, probe_bytes: int = 0) -> float:
        """Seconds on the store's own clock, so that ages are not judged by ours. Found by writing so many bytes, which
        also shows whether there is room for them."""

    def sweep(self, before: float) -> None:
        """Remove what writers that died left unfinished before that time."""


class StoredObjects:
    """`Objects` over obstore. `folder` is where a store of this machine lies."""

    def __init__(self, store: "ObjectStore", place: str, folder: Path | None = None) -> None:
        self.place = place
        self._store = store
        self._folder = folder

    def get(self, name: str) -> memoryview:
        try:
            return memoryview(obstore.get(self._store, name).bytes())
        except FileNotFoundError as error:
            raise NotFound(f"{name} is not in {self.place}") from error
        except (BaseError, OSError, ValueError) as error:
            raise _unavailable(error) from error

    def create(self, name: str, content: bytes) -> None:
        try:
            self._check_room(len(content))
            obstore.put(self._store, name, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return
        except (BaseError, OSError, ValueError) as error:
            raise _unavailable(error) from error

    def delete(self, names: Sequence[str]) -> None:
        try:
            if self._folder is None:
                obstore.delete(self._store, names)  # up to a thousand in a request
                return
            for name in names:
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, name)
                file = self._folder / name
                for unfinished in file.parent.glob(f"{file.name}#*"):
                    unfinished.unlink(missing_ok=True)
        except (BaseError, OSError, ValueError) as error:
            raise _unavailable(error) from error

    def list(self) -> Iterator[Listed]:
        try:
            for batch in obstore.list(self._store, chunk_size=_LISTED_AT_ONCE):
                for each in batch:
                    yield Listed(each["path"], each["size"], each["last_modified"].timestamp())
        except (BaseError, OSError, ValueError) as error:
            raise _unavailable(error) from error

    def now(self, prefix: str, probe_bytes: int = 0) -> float:
        name = f"{prefix}/clock"
        try:
            self._check_room(probe_bytes)
            obstore.put(self._store, name, bytes(probe_bytes), use_multipart=False)
            return obstore.head(self._store, name)["last_modified"].timestamp()
        except (BaseError, OSError, ValueError) as error:
            raise _unavailable(error) from error

    def sweep(self, before: float) -> None:
        """Of a folder: obstore writes beside the object, as `name#1`, and lists no such file. A bucket has none."""
        if self._folder is None:
            return
        try:
            for file in self._folder.rglob("*#*"):
                with suppress(FileNotFoundError):  # its writer has finished it
                    if file.stat().st_mtime < before - _ABANDONED_S:
                        file.unlink()
        except OSError as error:
            raise _unavailable(error) from error

    def _check_room(self, size: int) -> None:
        """Raise `Unavailable` when too little of a folder's disk would be left to others."""
        if self._folder is None or not size:
            return
        disk = shutil.disk_usage(self._folder)
        spared = min(_SPARED_BYTES, disk.total // _SPARED_PARTS)
        if disk.free < spared:
            raise Unavailable(f"{disk.free >> 20} MiB are free on its disk, and {spared >> 20} MiB are left to others")


def open_objects(where: str, patience_s: float) -> StoredObjects:
    """A folder, which is made, or `s3://bucket/prefix`, with the credentials of the environment.

    No request takes longer than `patience_s`. Raises `StartError` for what can never be a store.
    """
    if not where.startswith(S3):
        try:
            Path(where).mkdir(parents=True, exist_ok=True, mode=0o700)
            return StoredObjects(LocalStore(where), where, Path(where))
        except (BaseError, OSError, ValueError) as error:
            raise StartError(f"kv.tiers.cold: {where}: {error}") from error
    try:
        store = S3Store.from_url(
            where,
            client_options={
                "timeout": timedelta(seconds=patience_s),
                "connect_timeout": timedelta(seconds=patience_s),
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
            },
            # Whoever waits would rather compute.
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=patience_s)},
        )
    except (BaseError, OSError, ValueError) as error:
        raise StartError(f"kv.tiers.cold: {where}: {error}") from error
    return StoredObjects(store, where)


def _unavailable(error: Exception) -> Unavailable:
    """In one line: obstore's errors have a debug form of many."""
    return Unavailable(str(error).strip().split("\n", 1)[0][:300])

"""Files of a run in a storage that all nodes reach, at a URL of fsspec; each has copies in a cache.

Each name has versions. ``supernet/00000004-5f0c9a1e/`` holds the files of one, and
``supernet/00000004-5f0c9a1e.json``, written last, says that they are all there and how large they
are: object stores cannot rename. The versions before are removed after that.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from search.record import has_secret
from search.run_folder.files import Files, Owner, SharedFolder, StorageError
from searchspace import durable
from searchspace.cache_folder import own_cache_folder, own_temporary_folder

CACHE_VARIABLE = "MIXER_SEARCH_CACHE"
# In a storage: whose it is, and who asks for it.
OWNER, ASKING = "owner.json", "asking"
ASK_SECONDS = 30.0

_PROBE = re.compile(r"probe-[0-9a-f]{32}")
_VERSION = re.compile(r"\d{8}-[0-9a-f]{8}(\.json)?")
# A version that is replaced while it is read is followed by a newer one, which is read instead.
_MAX_READS = 5

# For each file of a folder its bytes and the nanoseconds of its last change.
_Contents = dict[str, list[int]]


def open_files(url: str, folder: Path) -> Files:
    """Return the files of a run: in the storage at ``url``, or if it is empty in the folder."""
    return Storage(url) if url else SharedFolder(folder.resolve())


def storage_url(text: str) -> str:
    """Return a storage as it was typed as a URL that means the same on all nodes.

    Raises:
        ValueError: If there is a password or key in it.
    """
    if has_secret(text):
        raise ValueError(
            "The address of a storage must not have a password or key: the record holds it, and "
            "others would see it in the list of processes. Put it into the environment, where the "
            "storage's library looks for it."
        )
    if not text or "://" in text or "::" in text:
        return text
    return f"file://{Path(text).expanduser().resolve()}"


@dataclass(frozen=True, slots=True)
class Storage:
    """Files at a URL, of which every node has copies in a folder of its own.

    That folder is ``$MIXER_SEARCH_CACHE``, by default the user's cache folder, and without one a
    folder of the user's among the temporary ones. Processes of a node may work on it at the same
    time.

    Args:
        url: As fsspec reads it; what it needs besides (keys, an endpoint) comes from the
            environment or fsspec's configuration. It belongs to one run.
    """

    url: str

    def check(self, *, is_new: bool, token: str = "") -> None:
        """See `Files`."""
        name, content = f"probe-{uuid.uuid4().hex}", b"mixer-search was here"
        try:
            self._copy(name)
        except StorageError as error:
            raise ValueError(str(error)) from error
        try:
            fs, root = self._connect()
            # A probe is of a process that looks right now, or was killed while it did.
            found = [e for e in _names(fs, root) if e != ASKING and not _PROBE.fullmatch(e)]
            owner = _owner(fs, root)
            is_free = not is_new or not found or (owner is not None and owner.run == token)
            if is_free:
                fs.pipe_file(f"{root}/{name}", content)
                if fs.cat_file(f"{root}/{name}") != content:
                    raise OSError("it does not give back what was written")
                fs.rm_file(f"{root}/{name}")
        except Exception as error:
            raise ValueError(
                f"The storage {self.url} cannot be used. {type(error).__name__}: {error}. Name a "
                "folder or a URL of fsspec where this user may write, read and remove files."
            ) from error
        if not is_free:
            raise self._in_use(min(found))

    def claim(self, owner: Owner) -> None:
        """See `Files`.

        Object stores have no locks, and listings show what was written before. Each writes that it
        asks and looks who else does: the last by name waits for none, the first until the others
        have withdrawn or one of them has it.
        """
        with self._asking():
            fs, root = self._connect()
            for earlier in _names(fs, f"{root}/{ASKING}"):
                if earlier.startswith(f"{owner.run}-"):  # killed while it asked
                    _remove(fs, f"{root}/{ASKING}/{earlier}")
            mine = f"{owner.run}-{uuid.uuid4().hex[:8]}"
            fs.pipe_file(f"{root}/{ASKING}/{mine}", b"{}")
            try:
                found = _take(fs, root, mine, owner)
            finally:
                _remove(fs, f"{root}/{ASKING}/{mine}")
        if found:
            raise self._in_use(found)

    def owner(self) -> Owner | None:
        """See `Files`.

        Raises:
            StorageError: If the storage does not answer.
        """
        with self._asking():
            return _owner(*self._connect())

    def enter(self, owner: Owner) -> None:
        """See `Files`.

        Raises:
            StorageError: If the storage does not answer.
        """
        with self._asking():
            _write_owner(*self._connect(), owner)

    def _in_use(self, found: str) -> ValueError:
        if found.startswith(ASKING):
            return ValueError(
                f"Another run asks for the storage {self.url} ({found}), or was killed while it "
                "did. Wait for it, name another with --storage, or remove that file."
            )
        return ValueError(
            f"The storage {self.url} is in use (it has {found}), and belongs to one run. "
            "Continue that run with --resume, or name another with --storage."
        )

    def disown(self) -> None:
        """See `Files`."""
        with self._asking():
            fs, root = self._connect()
            _remove(fs, f"{root}/{OWNER}")

    def has(self, name: str) -> bool:
        """See `Files`."""
        with self._asking():
            fs, place = self._connect(name)
            return _newest(fs, place) is not None

    def fetch(self, name: str) -> Path:
        """See `Files`.

        Raises:
            StorageError: If the storage does not answer, or holds less than was published.
        """
        copy = self._copy(name)
        with self._asking(), self._lock(name):
            fs, place = self._connect(name)
            for _ in range(_MAX_READS):
                try:
                    self._update(copy, fs, place)
                except FileNotFoundError:
                    continue
                return copy
        raise StorageError(f"{self.url} lacks files of {name} that were published.")

    def publish(self, name: str, folder: Path) -> None:
        """See `Files`.

        Whatever ends the process on the way leaves the version before or the new one.

        Raises:
            StorageError: If the storage does not answer.
        """
        with self._asking():
            fs, place = self._connect(name)
            earlier, contents = _versions(fs, place), _contents(folder)
            last = max(earlier, default="00000000")
            version = f"{int(last[:8]) + 1:08d}-{uuid.uuid4().hex[:8]}"
            _upload(fs, folder, f"{place}/{version}", contents)
            if folder == self._copy(name):
                _write_note(folder, version, contents)
            for entry in sorted(earlier, key=lambda entry: not entry.endswith(".json")):
                _remove(fs, f"{place}/{entry}")

    def forget(self, name: str) -> None:
        """See `Files`."""
        with self._lock(name):
            _remove_copy(self._copy(name))

    def remove(self, name: str) -> None:
        """See `Files`.

        Raises:
            StorageError: If the storage does not answer.
        """
        with self._asking():
            _remove(*self._connect(name))

    def _connect(self, name: str = "") -> tuple[Any, str]:
        """Return the file system and the path of a name in it."""
        import fsspec.core

        # The others have no folders, or make them by themselves.
        options = {"auto_mkdir": True} if self.url.startswith(("file://", "local://")) else {}
        fs, root = fsspec.core.url_to_fs(self.url, **options)
        root = root.rstrip("/")
        return fs, f"{root}/{name}" if name else root

    def _update(self, copy: Path, fs: Any, place: str) -> None:
        """Make this node's copy the newest version.

        Raises:
            FileNotFoundError: If that has been replaced by a newer one meanwhile.
        """
        newest = _newest(fs, place)
        if newest is None:
            _remove_copy(copy)
            return
        version, sizes = newest
        if _holds(copy, version):
            return
        partial = copy.with_name(f"{copy.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _download(fs, f"{place}/{version}", partial, sizes)
        _remove_copy(copy)
        os.replace(partial, copy)
        _write_note(copy, version, _contents(copy))

    def _copy(self, name: str) -> Path:
        """Name the folder of this node's copy."""
        runs = _cache_folder() / "runs"
        return runs / hashlib.sha256(self.url.encode()).hexdigest()[:16] / name

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Let one process of this node at a time change copies of this kind."""
        folder = self._copy("")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name.partition('/')[0]}.lock").open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Say which storage it is that does not answer; a full disk speaks for itself."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageError(f"{self.url}: {type(error).__name__}: {error}") from error


def _cache_folder() -> Path:
    """Return the folder of this node's copies, at the same place for all processes of the node.

    Raises:
        StorageError: If there is none that only this user can write.
    """
    if text := os.environ.get(CACHE_VARIABLE):
        if not (folder := Path(text)).is_absolute():
            raise StorageError(
                f"{CACHE_VARIABLE} must be an absolute path, because the workers have working "
                f"folders of their own; got {text!r}. Write it from / on, or unset it."
            )
        return folder
    # A home that is missing, somebody else's or read-only.
    with suppress(OSError):
        if os.access(folder := own_cache_folder(), os.W_OK):
            return folder
    try:
        return own_temporary_folder()
    except OSError as error:
        raise StorageError(
            f"This user has no folder for copies of the run's files ({error}). "
            f"Name one with {CACHE_VARIABLE}."
        ) from error


def _names(fs: Any, path: str) -> list[str]:
    """List what lies under a path."""
    fs.invalidate_cache()  # of listings: other nodes write as well
    try:
        return [PurePosixPath(found).name for found in fs.ls(path, detail=False)]
    except FileNotFoundError:
        return []


def _versions(fs: Any, place: str) -> list[str]:
    """List versions and their indices, whole or not."""
    return [entry for entry in _names(fs, place) if _VERSION.fullmatch(entry)]


def _newest(fs: Any, place: str) -> tuple[str, dict[str, int]] | None:
    """Return the newest whole version and the sizes of its files, or None.

    Raises:
        FileNotFoundError: If newer ones replace it again and again while it is looked for.
    """
    for left in reversed(range(_MAX_READS)):
        indices = [entry for entry in _versions(fs, place) if entry.endswith(".json")]
        try:
            for index in sorted(indices, reverse=True):
                # Where files do not appear at once, one may be read while it is written.
                with suppress(ValueError):
                    return index.removesuffix(".json"), json.loads(fs.cat_file(f"{place}/{index}"))
        except FileNotFoundError:
            if not left:
                raise
        else:
            break
    return None


def _take(fs: Any, root: str, mine: str, owner: Owner) -> str | None:
    """Write whose the storage is from now on, or say what stands against it."""
    deadline = time.monotonic() + ASK_SECONDS
    while True:
        # In this order: whoever has withdrawn after this has written before the next line.
        asking = _names(fs, f"{root}/{ASKING}")
        if found := _owner(fs, root):
            return None if found.run == owner.run else OWNER
        if asking == [mine]:
            _write_owner(fs, root, owner)
            return None
        first = min(asking, default=mine)
        if first != mine or time.monotonic() > deadline:
            return f"{ASKING}/{first}"
        time.sleep(0.1)


def _owner(fs: Any, root: str) -> Owner | None:
    """Return who has a storage, if somebody does."""
    fs.invalidate_cache()
    try:
        return Owner(**json.loads(fs.cat_file(f"{root}/{OWNER}")))
    except FileNotFoundError:
        return None


def _write_owner(fs: Any, root: str, owner: Owner) -> None:
    fs.pipe_file(f"{root}/{OWNER}", json.dumps(asdict(owner)).encode())


def _upload(fs: Any, folder: Path, target: str, contents: _Contents) -> None:
    """Write the files of a version, then its index."""
    from fsspec.implementations.local import LocalFileSystem

    fs.put([str(folder / file) for file in contents], [f"{target}/{file}" for file in contents])
    sizes = {file: size for file, (size, _) in contents.items()}
    is_local = isinstance(fs, LocalFileSystem)  # an object store keeps what it has confirmed
    if is_local and contents:
        durable.sync(Path(target))
    fs.pipe_file(f"{target}.json", json.dumps(sizes, indent=1).encode())
    if is_local:
        durable.sync(Path(f"{target}.json"))
        durable.sync_folder(Path(target).parent)


def _download(fs: Any, source: str, folder: Path, sizes: dict[str, int]) -> None:
    """Copy the files of a version into a new folder, and look whether they are whole."""
    for file in sizes:
        if not _is_inside(file):
            raise OSError(f"{source}.json names {file!r}, which would lie outside of its folder")
    for parent in {(folder / file).parent for file in sizes}:
        parent.mkdir(parents=True, exist_ok=True)
    fs.get([f"{source}/{file}" for file in sizes], [str(folder / file) for file in sizes])
    for file, size in sizes.items():
        if (found := (folder / file).stat().st_size) != size:
            raise OSError(f"{source}/{file} has {found} bytes, {size} were written")


def _is_inside(file: str) -> bool:
    """Tell whether a name in an index stays in its folder, on every system."""
    path = PurePosixPath(file)
    is_plain = file == path.as_posix() and not path.is_absolute() and path.parts != ()
    return is_plain and ".." not in path.parts and not set("\\:\0") & set(file)


def _remove(fs: Any, path: str) -> None:
    fs.invalidate_cache()
    with suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def _contents(folder: Path) -> _Contents:
    """Describe the files of a folder so that a changed one is told from the published."""
    stats = {
        path.relative_to(folder).as_posix(): path.stat()
        for path in sorted(folder.rglob("*"))
        # What a link points to is not ours to share.
        if path.is_file() and not path.is_symlink()
    }
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def _note(copy: Path) -> Path:
    """Name the file that says which version a copy is; it lies beside it."""
    return copy.with_name(f"{copy.name}.version")


def _write_note(copy: Path, version: str, contents: _Contents) -> None:
    durable.write_text(_note(copy), json.dumps({"version": version, "contents": contents}))


def _holds(copy: Path, version: str) -> bool:
    """Tell whether a copy is a version: whole, and not written to after that was published."""
    try:
        note: object = json.loads(_note(copy).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return note == {"version": version, "contents": _contents(copy)}


def _remove_copy(copy: Path) -> None:
    _note(copy).unlink(missing_ok=True)
    if copy.is_symlink():
        copy.unlink()
    shutil.rmtree(copy, ignore_errors=True)

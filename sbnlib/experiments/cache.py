"""A folder that keeps the training runs of one experiment, so that a killed one goes on.

A folder belongs to one key: the experiment's name, all its settings, the data, the code and the
version of torch. Every file says which key, and which run, it is of:

    key.json            the key
    RUN.json            the row of a finished run
    RUN.ckpt            the state of a run under way, written after each epoch
    held-by.txt, lock   who works here; the system frees the lock when that process ends

A file of another key or run is refused by name. One that cannot be read is renamed NAME.corrupt,
with a warning, and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from filelock import FileLock, Timeout

from sbnlib.data import Dataset
from sbnlib.experiments.measurement import check_writable, commit, write_whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "Cache",
    "CacheError",
    "Checkpoint",
    "Folder",
    "Key",
    "Row",
    "as_checkpoint",
    "code_hash",
    "folder_of",
    "make_key",
]

Key = dict[str, Any]
Row = dict[str, Any]
T = TypeVar("T")


class ComputeAll(Protocol):
    """Some runs, and for each the file for its state: their rows, one by one."""

    def __call__(
        self, runs: Sequence[Mapping[str, Any]], files: Sequence[Checkpoint | None], /
    ) -> Iterable[Row]: ...


class CacheError(RuntimeError):
    """A folder or a checkpoint belongs to other runs, or is in use; the message names it."""


# What decides the numbers -------------------------------------------------------------------------


def make_key(experiment: str, settings: Mapping[str, Any], data: Dataset) -> Key:
    """All that decides the numbers of an experiment, in the form in which a file gives it back."""
    sources = {"data_sha256": _content(data), "code": _code(), "torch": torch.__version__}
    return json.loads(json.dumps({"experiment": experiment, **settings, **sources}))


def _content(data: Dataset) -> str:
    """A hash of the data set: its name, the classes, and dtype, shape and values of each tensor."""
    found = hashlib.sha256(repr((data.name, data.image_shape, data.num_classes)).encode())
    for split in (data.train, data.validation, data.test):
        for tensor in (split.inputs, split.labels):
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _code() -> str:
    """The commit, and where that does not say what the code is, a hash of it."""
    found = commit()
    if found != "unknown" and not found.endswith("-dirty"):
        return found
    return f"{found} {code_hash()}"


def code_hash() -> str:
    """A hash of all sources of sbnlib, the same wherever they lie."""
    package = Path(__file__).parent.parent
    sources = b"\0".join(path.read_bytes() for path in sorted(package.rglob("*.py")))
    return hashlib.sha256(sources).hexdigest()


def _check(path: Path, there: Key, here: Key) -> None:
    if found := _difference(there, here):
        raise CacheError(
            f"{path} belongs to another run ({found}); delete it, or name another place"
        )


def _difference(there: Key, here: Key) -> str:
    """The first entry that is another one there, or only there; nothing if there is none.

    A folder's key has no run, each of its files has one.
    """
    for name in (*here, *(n for n in there if n not in here and n != "run")):
        value, other = here.get(name), there.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            if inner := _difference(other, value):
                return f"{name} {inner}"
        elif other != value:
            return f"{name}: {other!r} there, {value!r} here"
    return ""


# Files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """The file that keeps the state of a run, and the key of that run."""

    path: Path
    key: Key

    def restore(self, fabric: Fabric, state: dict[str, Any]) -> int:
        """Fill ``state`` from the file; the number of epochs it has seen, 0 without a file.

        Raises:
            CacheError: the file is of another run.
            MeasurementError: it could not be written later.
        """
        if not on_first(fabric, self._is_there):
            return 0
        return fabric.load(self.path, state, weights_only=True)["epoch"]

    def _is_there(self) -> bool:
        check_writable(self.path)
        if not self.path.exists():
            return False
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch does not look at the checksums
                if broken := archive.testzip():
                    raise ValueError(f"{broken} is damaged")
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch has no one error for what it cannot read
            _set_aside(self.path, error)
            return False
        _check(self.path, _key_in(found), self.key)
        return True

    def save(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Write beside the file, then rename: a kill leaves the old one or the new one."""
        part = self.path.with_name(f"{self.path.name}.part")
        fabric.save(part, state | {"key": self.key})
        if fabric.is_global_zero:
            os.replace(part, self.path)
        fabric.barrier()


def _named(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.items())


def as_checkpoint(
    file: str | os.PathLike[str] | Checkpoint | None, key: Callable[[], Key]
) -> Checkpoint | None:
    """A file with the key of its run, which is made only if it is needed."""
    if file is None or isinstance(file, Checkpoint):
        return file
    return Checkpoint(Path(file), key())


def _read(path: Path) -> Any:
    """What the JSON file holds; None if it is not there, or was broken and is set aside."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _set_aside(path, error)
        return None


def _key_in(content: Any) -> Key:
    """The key in a file's content, an empty one if it is not one of ours."""
    found = content.get("key") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _set_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(f"{path.name}.corrupt")
    with suppress(FileNotFoundError):  # another process was first
        os.replace(path, aside)
    reason = str(error).strip().partition("\n")[0]
    warnings.warn(f"{path} cannot be read ({reason}); it is now {aside.name}", stacklevel=2)


# The folder ---------------------------------------------------------------------------------------


def folder_of(parent: Path, key: Key) -> Path:
    """The folder in ``parent`` for the runs of this key alone."""
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return parent / f"{key['experiment']}-{name}"


def on_first(fabric: Fabric, function: Callable[[], T]) -> T:
    """What ``function`` returns or raises on the first device, on all of them."""
    found: T | None = None
    error: Exception | None = None
    if fabric.is_global_zero:
        try:
            found = function()
        except Exception as raised:  # the others would wait for it for ever
            error = raised
    found, error = fabric.broadcast((found, error))
    if error is not None:
        raise error
    return cast(T, found)


class Folder:
    """The files of one key. Entering it takes hold of the folder, leaving lets go.

    Args:
        key: what decides the numbers, see :func:`make_key`.
        path: the folder; None for nowhere.
        shared: whether others may work there at once. Nothing is locked then, and of what is there
            only ``key.json`` is looked at on entering.

    Raises:
        CacheError: on entering, if the folder is in use or belongs to another key.
        MeasurementError: on entering, if it cannot be written to.
    """

    def __init__(
        self, key: Key, path: str | os.PathLike[str] | None, *, shared: bool = False
    ) -> None:
        self.key, self.shared = key, shared
        self.path = None if path is None else Path(path)
        self._lock: FileLock | None = None

    def __enter__(self) -> Folder:
        self.open()
        return self

    def open(self) -> None:
        if self.path is None:
            return
        with suppress(OSError):  # the next line says why
            self.path.mkdir(parents=True, exist_ok=True)
        check_writable(self.path / "key.json")
        self._lock = None if self.shared else _hold(self.path)
        try:
            for path in sorted(self.path.glob("key.json" if self.shared else "*.json")):
                if found := _key_in(_read(path)):
                    _check(path, found, self.key)
        except BaseException:
            self.close()
            raise
        if not (self.path / "key.json").exists():
            _write(self.path / "key.json", {"key": self.key})

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.path is not None and self._lock is not None:
            (self.path / "held-by.txt").unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def place(self, name: str, run: Mapping[str, Any], ending: str) -> tuple[Path, Key] | None:
        """The file NAME.ENDING of a run, and its key; None where nothing is kept."""
        if self.path is None:
            return None
        return self.path / f"{name}.{ending}", self.key | {"run": dict(run)}

    def get(self, name: str, run: Mapping[str, Any], what: str = "row") -> Any:
        """What is kept of a run; None if nothing is.

        Raises:
            CacheError: the file is of another run.
        """
        place = self.place(name, run, "json")
        if place is None or (content := _read(place[0])) is None:
            return None
        _check(place[0], _key_in(content), place[1])
        return content[what]

    def put(self, name: str, run: Mapping[str, Any], value: Any, what: str = "row") -> None:
        """Keep what was found of a run; several processes may do so at once."""
        if place := self.place(name, run, "json"):
            path, own = place
            _write(path, {"key": own, what: value})

    def clear(self) -> None:
        """Delete it, while it is still held: its rows are now in a measurement file."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)


class Cache:
    """The known runs of one experiment. Entering it takes hold of the folder, leaving lets go.

    Args:
        fabric: where the runs are.
        key: what decides their numbers, see :func:`make_key`.
        folder: where rows and checkpoints are kept; None for nowhere.

    Raises:
        CacheError: on entering, if the folder is in use or belongs to another key.
        MeasurementError: on entering, if it cannot be written to.
    """

    def __init__(
        self, fabric: Fabric, key: Key, folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.fabric, self._files = fabric, Folder(key, folder)

    def __enter__(self) -> Cache:
        on_first(self.fabric, self._files.open)
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def row(self, run: Mapping[str, Any], compute: Callable[[Checkpoint | None], Row]) -> Row:
        """The row of ``run``: from its file if it is known, else what ``compute`` returns.

        ``compute`` is given the file for the run's state; the rest is as in :meth:`rows`.
        """
        (row,) = self.rows([run], lambda _, files: [compute(*files)])
        return row

    def rows(
        self, runs: Sequence[Mapping[str, Any]], compute: ComputeAll, *, stack: int = 1
    ) -> list[Row]:
        """The rows of ``runs``: those that are known from their files, the others computed.

        All devices get the rows of the first.

        Args:
            runs: what each differs in from the others of this key; it names its file.
            compute: is given some of the runs, and for each the file for its state; its rows are
                kept one by one as it comes to them.
            stack: the most runs that it is given at a time.

        Raises:
            CacheError: a file of the name of a run is of another run.
            Exception: what ``compute`` raises, with a note which run it was. The runs beside it are
                computed by halves of what is left, from where they are, and kept; on several
                devices all stop.
        """
        found = [self._known(run) for run in runs]
        missing = [k for k, row in enumerate(found) if row is None]
        for start in range(0, len(missing), stack):
            self._fill(found, runs, missing[start : start + stack], compute)
        return [row for row in found if row is not None]

    def _fill(
        self,
        found: list[Row | None],
        runs: Sequence[Mapping[str, Any]],
        some: Sequence[int],
        compute: ComputeAll,
    ) -> None:
        """Compute some of the runs together; where that fails, by halves."""
        files = [self._checkpoint(runs[k]) for k in some]
        try:
            rows = compute([runs[k] for k in some], files)
            for k, file, row in zip(some, files, rows, strict=True):
                found[k] = self._keep(runs[k], file, row)
        except CacheError:
            raise
        except Exception as error:
            if len(some) == 1:
                error.add_note(f"in the run {_named(runs[some[0]])}")
            if len(some) == 1 or self.fabric.world_size > 1:
                raise
        else:
            return
        left = [k for k in some if found[k] is None]
        half = (len(left) + 1) // 2
        failed: list[Exception] = []
        for part in (left[:half], left[half:]):
            try:
                if part:
                    self._fill(found, runs, part, compute)
            except CacheError:
                raise
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _known(self, run: Mapping[str, Any]) -> Row | None:
        if self._files.path is None:
            return None
        return on_first(self.fabric, lambda: self._files.get(_name(run), run))

    def _checkpoint(self, run: Mapping[str, Any]) -> Checkpoint | None:
        place = self._files.place(_name(run), run, "ckpt")
        return Checkpoint(*place) if place else None

    def _keep(self, run: Mapping[str, Any], file: Checkpoint | None, row: Row) -> Row:
        row = self.fabric.broadcast(row)
        if file and self.fabric.is_global_zero:
            self._files.put(_name(run), run, row)
            file.path.unlink(missing_ok=True)
        return row

    def clear(self) -> None:
        """Delete the folder, which is still held: its rows are now in a measurement file."""
        self._files.clear()


def _name(run: Mapping[str, Any]) -> str:
    return "-".join(map(str, run.values()))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, allow_nan=False))


def _hold(folder: Path) -> FileLock:
    """Lock the folder and leave a note by whom."""
    lock, note = FileLock(folder / "lock", thread_local=False), folder / "held-by.txt"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CacheError(
            f"{folder} is in use by {_said(note)}; wait until it has ended, or name another place"
        ) from None
    except OSError as error:
        raise CacheError(f"{folder} cannot be locked: {error}") from error
    since = datetime.now(UTC).isoformat(timespec="seconds")
    command = shlex.join(sys.orig_argv)
    write_whole(note, f"process {os.getpid()} on {platform.node()} since {since}: {command}")
    return lock


def _said(note: Path) -> str:
    try:
        return note.read_text(encoding="utf-8")
    except OSError:  # its writer has just come, or is just leaving
        return "another process"

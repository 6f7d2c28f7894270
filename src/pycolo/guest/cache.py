"""The cache of what is built from Debian packages: the guest, and its disk.

A build either ends complete in the cache or leaves nothing there: it happens in a folder of its own, which is
renamed at the end, under a lock that keeps other builders out. The same packages and sources are built once.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pycolo.errors import EnvironmentFault
from pycolo.guest import packages
from pycolo.guest.packages import Package, PackagesUnavailable

LOCK_S_MAX = 900.0
BUILDS_MAX = 3
_STALE = "building-"

Progress = Callable[[str, float], None]


def silent(step: str, fraction: float) -> None:
    """Progress that nobody looks at."""
    del step, fraction


@dataclass(frozen=True)
class Recipe:
    """How to build one thing: `name` is its name in the cache and, after "the", in sentences.

    `fill` gets a folder of its own, with empty folders `download` and `image`; `image` is what is kept.
    """

    name: str
    sources: Callable[[], Iterable[Path]]
    resolve: Callable[[], tuple[Package, ...]]
    fill: Callable[[Path, tuple[Package, ...], Progress], None]
    size_mb: int


def default_cache_dir() -> Path:
    """Return $XDG_CACHE_HOME/pycolo or ~/.cache/pycolo; raises EnvironmentFault when there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "pycolo"
    try:
        return Path.home() / ".cache" / "pycolo"
    except RuntimeError:
        raise EnvironmentFault("there is no home folder for the guest; set XDG_CACHE_HOME or --cache-dir.") from None


def built(recipe: Recipe, cache_dir: Path | None, progress: Progress) -> Path:
    """Return the folder of what `recipe` makes, built now unless the cache has it already.

    When apt can't tell or fetch the packages, the newest build from the same sources serves. Raises
    EnvironmentFault with the remedy in one sentence.
    """
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    try:
        return _current_or_earlier(recipe, cache.absolute(), progress)
    except OSError as error:
        raise _storage_fault(recipe, cache, error) from error


def storage_is_full(error: OSError) -> bool:
    """Whether `error` says that there is no space, or none for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _storage_fault(recipe: Recipe, cache: Path, error: OSError) -> EnvironmentFault:
    if storage_is_full(error):
        return EnvironmentFault(
            f"no space is left for the {recipe.name} in {cache}; "
            f"free {recipe.size_mb} MB there or choose another --cache-dir."
        )
    return EnvironmentFault(
        f"the {recipe.name} can't be built in {cache} ({error.strerror}); choose a writable --cache-dir."
    )


def _current_or_earlier(recipe: Recipe, cache: Path, progress: Progress) -> Path:
    try:
        try:
            return _current(recipe, cache, progress)
        except PackagesUnavailable:
            if os.geteuid() != 0:
                raise
        progress("Updating the package lists", 0.02)
        packages.update_lists()
        return _current(recipe, cache, progress)
    except PackagesUnavailable:
        earlier = _by_age(cache, f"{recipe.name}-{_sources_key(recipe)}-*")
        if not earlier:
            raise
        progress(f"Using the {recipe.name} built earlier, since its packages are not to be had now", 1.0)
        return earlier[0]


def _current(recipe: Recipe, cache: Path, progress: Progress) -> Path:
    progress("Looking up the packages", 0.0)
    wanted = recipe.resolve()
    target = cache / f"{recipe.name}-{_sources_key(recipe)}-{_packages_key(wanted)}"
    cache.mkdir(parents=True, exist_ok=True)
    if not target.is_dir():
        with _locked(cache, progress):
            if not target.is_dir():
                _build(recipe, target, wanted, progress)
    progress(f"The {recipe.name} is ready", 1.0)
    return target


def _sources_key(recipe: Recipe) -> str:
    digest = hashlib.sha256()
    for path in sorted(recipe.sources(), key=lambda path: path.name):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _packages_key(wanted: tuple[Package, ...]) -> str:
    listing = "".join(f"{package.name}={package.version}\n" for package in wanted)
    return hashlib.sha256(listing.encode()).hexdigest()[:12]


def _by_age(cache: Path, pattern: str) -> list[Path]:
    return sorted(cache.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)


@contextmanager
def _locked(cache: Path, progress: Progress) -> Iterator[None]:
    """Hold the cache's lock; the kernel frees it when this process ends, however it ends."""
    deadline = time.monotonic() + LOCK_S_MAX
    with (cache / "lock").open("wb") as lock:
        while not _try_lock(lock.fileno()):
            if time.monotonic() > deadline:
                raise EnvironmentFault(f"another build holds {cache}/lock for too long; end it and try again.")
            progress("Waiting for another build", 0.03)
            time.sleep(0.2)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build(recipe: Recipe, target: Path, wanted: tuple[Package, ...], progress: Progress) -> None:
    cache = target.parent
    for stale in cache.glob(f"{_STALE}*"):  # left by a builder that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_STALE, dir=cache) as name:
        folder = Path(name)
        (folder / "download").mkdir()
        (folder / "image").mkdir()
        recipe.fill(folder, wanted, progress)
        _sync(folder / "image")
        (folder / "image").rename(target)
    for old in _by_age(cache, f"{recipe.name}-*")[BUILDS_MAX:]:
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def unpacked(
    wanted: tuple[Package, ...], folder: Path, is_wanted: Callable[[str], bool], progress: Progress
) -> packages.FileTree:
    """Return the files of `wanted` whose path `is_wanted`; fetches the packages into `folder`."""
    archives = packages.download(wanted, folder, lambda part: progress("Downloading the packages", 0.1 + 0.5 * part))
    tree = packages.FileTree()
    for number, package in enumerate(archives):
        progress(f"Unpacking {package.name.split('_')[0]}", 0.6 + 0.2 * number / len(archives))
        tree.unpack(package, is_wanted)
    return tree

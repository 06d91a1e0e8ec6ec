"""What a loader reads from, as a set of tars: builds, indexes, tars of a disk or of a store, and mixes of these."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import index
from ..errors import RecipeError, ShardError, SourceError
from ..remote import UNLISTED, Facts, Remote, root_of
from .cache import Cache, File, Handle
from .foreign import indexed, indexed_in
from .mix import Mix, Mixed
from .tars import Tars

INDEX = "index.arrow"
ASKED = 16  # requests at once
Plain = str | Path | Sequence[str | Path]
Source = Plain | Mix


def opened(source: Source, cache: Cache | str | Path | None = None) -> Tars:
    """The set at `source`: a build's folder, an index, or tars, which are indexed first if they are not yet.

    cache: where what lies in a store is fetched to, see `Cache`.
    """
    if isinstance(source, Mix):
        return Mixed([(opened(one, cache), weight) for one, weight in source.sources])
    named = [source] if isinstance(source, str | Path) else list(source)
    roots = [root_of(one) for one in named]
    far = [root for root in roots if isinstance(root, Remote)]
    near = [root for root in roots if isinstance(root, Path)]
    if far and near:
        raise RecipeError(f"{near[0]} is on a disk, {far[0]} in a store: give a Mix of both")
    if far:
        return _far(far, cache if isinstance(cache, Cache) else Cache(cache), not isinstance(source, str | Path))
    if isinstance(source, str | Path):
        if near[0].suffix == ".arrow":
            return Tars(index.load(near[0]), near[0].parent)
        if (near[0] / INDEX).is_file():
            tars = Tars(index.load(near[0] / INDEX), near[0])
            if strange := sorted({path.name for path in near[0].glob("*.tar")} - {shard.name for shard in tars.shards}):
                raise ShardError(
                    f"{near[0] / strange[0]}: not in the index beside it, as {len(strange)} tars there: move them, or "
                    f"remove index.arrow and run `datakit index {near[0]}`"
                )
            return tars
    return indexed(near)


def _far(roots: Sequence[Remote], cache: Cache, several: bool) -> Tars:
    """A set in a store: tars, or one folder or index."""
    ask = _tars(roots) if several or roots[0].name.endswith(".tar") else _folder(roots[0])
    found = cache.told(" ".join(root.url for root in roots), ask)
    first, facts = next(iter(found.items()))
    if not first.endswith(".arrow"):
        return indexed_in(cache, found)
    held: list[Handle] = []

    def fetched(file: File) -> Path:
        held.append(cache.open(file))
        return cache.path(file)

    def beside(name: str) -> Path:
        """A file by the index, in the cache for as long as the set is open."""
        url = Remote(first).parent / name
        there = cache.told(url.url, lambda: {url.url: url.facts()})[url.url]
        return fetched(File(url, there.size_bytes, stamp=there.stamp))

    file = File(Remote(first), facts.size_bytes, stamp=facts.stamp)
    new = not cache.path(file).exists()
    table = index.load(fetched(file))
    about = table.schema.metadata
    if new and index.digest(table, about[b"shards"].decode()) != about[b"digest"].decode():
        cache.remove(file)
        raise ShardError(f"{first}: damaged, or it came so: its rows are not those of its digest")
    return Tars(table, Remote(first).parent, cache, beside)


def _tars(urls: Sequence[Remote]) -> Callable[[], dict[str, Facts]]:
    """What asks for each of these; the first alone, so that a network which is down is waited for once."""

    def ask() -> dict[str, Facts]:
        from concurrent.futures import ThreadPoolExecutor

        first = urls[0].facts()
        with ThreadPoolExecutor(ASKED) as pool:
            return dict(zip([url.url for url in urls], [first, *pool.map(Remote.facts, urls[1:])], strict=True))

    return ask


def _folder(url: Remote) -> Callable[[], dict[str, Facts]]:
    """What asks for the index at this place, else for the tars below it."""

    def ask() -> dict[str, Facts]:
        at = url if url.name.endswith(".arrow") else url / INDEX
        try:
            return {at.url: at.facts()}
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
        below = {} if url.scheme in UNLISTED or at == url else url.below()
        found = {(url / path).url: facts for path, facts in sorted(below.items()) if path.endswith(".tar")}
        if not found:
            raise SourceError(f"{at}: not there, and no tars are listed there. Give a build, or a list of tars")
        return found

    return ask

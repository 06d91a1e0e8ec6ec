"""Images that could not be read: how many a source may have, which they are, and how they are tried again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import disk
from .alone import BLAMED, FAILURES
from .errors import StageError
from .run import Funnel, read_done
from .sources.scan import Source

NAMED = 20  # images that an error names
AGAIN = "again.json"  # in WORK
OF_IMAGES = tuple(reason for reason in FAILURES if reason != "label_unreadable")


def check_readable(sources: Iterable[Source], step: str, funnel: Funnel, parts: Sequence[Path]) -> None:
    """StageError if more images of a source than its `max_unreadable_share` could not be read; names the first."""
    for source in sources:
        mine = [name for name in funnel.came if name.partition("/")[0] == source.name]
        came = sum(funnel.came[name] for name in mine)
        lost = sum(
            n for name in mine for reason, n in funnel.dropped.get(name, Counter()).items() if reason in OF_IMAGES
        )
        if lost > came * source.max_unreadable_share:
            own = [path for path in parts if path.stem.split("-")[0] == source.name]
            raise StageError(
                f"{source.name}: {lost:,} of {came:,} could not be read in {step} ({lost / came:.1%}), more than its "
                f"max_unreadable_share {source.max_unreadable_share:.1%}:\n"
                + "\n".join(named(own, OF_IMAGES))
                + "\nMend them and give --retry with the reason, or raise max_unreadable_share of the source"
            )


def named(parts: Iterable[Path], reasons: Sequence[str]) -> Iterator[str]:
    """A line for each of the first images of some parts that were dropped for these reasons."""
    said: dict[str, None] = {}
    for path in parts:
        if not any(set(reasons) & set(by) for by in read_done(path).funnel.dropped.values()):
            continue
        table = pq.read_table(path, columns=["source", "name", "dropped", "detail"])
        for row in table.filter(pc.is_in(table.column("dropped"), pa.array(reasons))).to_pylist():
            said[f"  {row['source']}: {row['name']}: {row['dropped']}: {row['detail']}"] = None
            if len(said) == NAMED:
                yield from said
                yield "  …"
                return
    yield from said


def again(work: Path) -> dict[str, list[str]]:
    """For which reasons parts were made again, each time, by step and listing: "scan/rs-0_0"."""
    path = work / AGAIN
    return json.loads(path.read_text()) if path.exists() else {}


def retry(reasons: Sequence[str], steps: dict[str, list[Path]], work: Path, say: Callable[[str], None]) -> None:
    """Have the parts of some steps made again that dropped images for these reasons.

    What was blamed is forgotten. A part that is made again has another name, and so has all that is made from it; the
    images that were read well are taken over.
    """
    wrong = sorted(set(reasons) - set(FAILURES))
    if wrong:
        raise StageError(f"--retry {', '.join(wrong)}: such a drop is final; give {', '.join(FAILURES)}")
    times, images = again(work), 0
    for step, parts in steps.items():
        for path in parts:
            dropped = read_done(path).funnel.dropped if path.exists() else {}
            lost = sum(by[reason] for by in dropped.values() for reason in reasons)
            if lost:
                name = f"{step}/{path.stem.rpartition('-')[0]}"
                times[name] = [*times.get(name, []), *reasons]
                images += lost
    for path in sorted((work / BLAMED).rglob("*.json")):
        if json.loads(path.read_text())["reason"] in reasons:
            path.unlink()
    with disk.aside(work) as aside:
        disk.commit_text(json.dumps(times, indent=1, sort_keys=True), work / AGAIN, aside)
    say(f"retry: {images:,} records dropped as {', '.join(reasons)} are tried again")

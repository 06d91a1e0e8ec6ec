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


def check_readable(sources: Iterable[Source], listed: Counter[str], parts: Sequence[Path]) -> None:
    """StageError if more images of a source than its `max_unreadable_share` could not be read; names the first.

    listed: images by source, sub-folders that count as sources each. parts: those of `scan`, and of `cut` if made.
    """
    for source in sources:
        came = sum(n for name, n in listed.items() if name.partition("/")[0] == source.name)
        own = [path for path in parts if path.stem.split("-")[0] == source.name]
        lost = list(named(own, OF_IMAGES))
        if len(lost) > came * source.max_unreadable_share:
            some = [*lost[:NAMED], *["  …"] * (len(lost) > NAMED)]
            raise StageError(
                f"{source.name}: {len(lost):,} of {came:,} images could not be read ({len(lost) / came:.1%}), more "
                f"than its max_unreadable_share {source.max_unreadable_share:.1%}:\n"
                + "\n".join(some)
                + "\nMend them and give --retry with the reason, or raise max_unreadable_share of the source"
            )


def named(parts: Iterable[Path], reasons: Sequence[str]) -> Iterator[str]:
    """A line for each image of some parts that was dropped for these reasons."""
    for path in parts:
        if not any(set(reasons) & set(by) for by in read_done(path).funnel.dropped.values()):
            continue
        table = pq.read_table(path, columns=["source", "name", "dropped", "detail"])
        rows = table.filter(pc.is_in(table.column("dropped"), pa.array(reasons))).to_pylist()
        yield from dict.fromkeys(f"  {row['source']}: {row['name']}: {row['dropped']}: {row['detail']}" for row in rows)


def nothing_left(funnels: dict[str, Funnel]) -> str:
    """Why no record is left: the reasons that dropped most, by stage."""
    dropped: Counter[str] = Counter()
    for stage, funnel in funnels.items():
        for reasons in funnel.dropped.values():
            dropped += Counter({f"{reason} ({stage})": n for reason, n in reasons.items()})
    most = ", ".join(f"{reason} {n:,}" for reason, n in dropped.most_common(5))
    return f"nothing is left: {most}. Change the rules, or the layout of the source; `datakit check` shows both"


def again(work: Path) -> dict[str, list[str]]:
    """For which reasons parts were made again, each time, by step and listing: "scan/rs-0_0"."""
    path = work / AGAIN
    return json.loads(path.read_text()) if path.exists() else {}


def renew(stems: Iterable[str], work: Path) -> None:
    """Have parts of `cut` made anew, and all that is made from them."""
    times = again(work)
    for stem in stems:
        name = f"cut/{stem.rpartition('-')[0]}"
        times[name] = [*times.get(name, []), "renewed"]
    _keep(times, work)


def _keep(times: dict[str, list[str]], work: Path) -> None:
    with disk.aside(work) as aside:
        disk.commit_text(json.dumps(times, indent=1, sort_keys=True), work / AGAIN, aside)


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
    _keep(times, work)
    say(f"retry: {images:,} records dropped as {', '.join(reasons)} are tried again")

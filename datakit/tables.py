"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from .manifest import Manifest


def closing(manifest: Manifest, timings: dict[str, Any]) -> str:
    """What a build did: records by stage and source, drops by reason, MB/s of what was read; then bytes and PSNR."""
    rows: list[tuple[str, ...]] = [("stage", "source", "in", "out", "MB/s", "dropped")]
    for count in manifest.counts:
        made = f"{count.left:,}" if count.left == count.made else f"{count.left:,} -> {count.made:,}"
        dropped = ", ".join(f"{reason} {n:,}" for reason, n in count.dropped.items())
        read = timings["read_bytes"].get(count.stage, {}).get(count.source, 0)
        seconds = timings["worker_seconds"].get(count.stage, {}).get(count.source, 0.0)
        speed = f"{read / 1e6 / seconds:.1f}" if read and seconds and count.stage in ("scan", "cut") else "-"
        rows.append((count.stage, count.source, f"{count.came:,}", made, speed, dropped))
    left: list[tuple[str, ...]] = [("source", "samples", "kB a tile", "PSNR dB", "licence")]
    for source in manifest.sources:
        psnr = "-" if source.mean_psnr_db is None else f"{source.mean_psnr_db:.1f}"
        size = f"{source.mean_bytes / 1e3:.1f}" if source.samples else "-"
        left.append((source.name, f"{source.samples:,}", size, psnr, source.licence[:60]))
    return "\n".join([*aligned(rows), "", *aligned(left), ""])


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows with their columns under each other; numbers to the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() or cell == "-" else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * len(lines[0]), *lines[1:]]

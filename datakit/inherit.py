"""What kept records take over from records with equal pixels: licences, label, boxes, and the list of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .sample import SCHEMA

CHANGED = ("licences", "label", "label_source", "boxes", "boxes_source", "also")  # fields of a kept record
CHANGES = pa.schema([("id", pa.int64()), *((name, SCHEMA.field(name).type) for name in CHANGED)])
NEEDS = ("key", "source", *CHANGES.names)  # columns
NO_BOXES = "[]"
SEPARATOR = "\x1f"  # after each text of a list; no licence has it in its name
Ints = NDArray[np.int64]


class Pairs:
    """Pairs of a kept record and another, rows of a table: in order of the keys of the one, then of the other."""

    def __init__(self, table: pa.Table, one: Ints, other: Ints) -> None:
        rank = np.argsort(pc.sort_indices(table.column("key")).to_numpy())
        by = np.lexsort([rank[other], rank[one]])
        self.table, self.one, self.other = table, one[by], other[by]
        self.begins = np.flatnonzero(np.diff(self.one, prepend=-1))
        self.heads = self.one[self.begins]  # kept records
        self.group = np.repeat(np.arange(len(self.heads)), np.diff(self.begins, append=len(by)))

    def numbers(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """A column of texts, or of lists of them, as numbers of the values that occur, and these."""
        column = self.table.column(name).combine_chunks()
        if pa.types.is_list(column.type):
            end = pa.array(["", SEPARATOR]).take(pc.greater(pc.list_value_length(column), 0).cast(pa.int8()))
            column = pc.binary_join_element_wise(pc.binary_join(column, SEPARATOR), end, "")
        column = column.dictionary_encode()
        return column.indices.to_numpy(), column.dictionary.to_pylist()


def inherited(table: pa.Table, one: Ints, other: Ints) -> tuple[pa.Table, list[dict[str, str]]]:
    """CHANGES of kept records, in order of their keys, and where another one contradicts them.

    table: NEEDS; one, other: pairs of its rows, the first one kept. A record that has no label takes the first that
    any other has; boxes likewise.
    """
    pairs = Pairs(table, one, other)
    new = table.select(CHANGES.names).take(pa.array(pairs.heads))
    found: list[tuple[int, int, dict[str, str]]] = []
    for n, (what, none) in enumerate((("label", ""), ("boxes", NO_BOXES))):
        new, apart = _told(pairs, new, what, none)
        found += [(pair, n, said) for pair, said in apart]
    for name, values in (("licences", _licences(pairs)), ("also", _also(pairs))):
        new = _put(new, name, values)
    return new.combine_chunks(), [said for *_, said in sorted(found, key=lambda each: each[:2])]


def _put(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def _told(pairs: Pairs, new: pa.Table, what: str, none: str) -> tuple[pa.Table, list[tuple[int, dict[str, str]]]]:
    """Kept records with the label, or the boxes, that they take, and by pair what contradicts it."""
    numbers, texts = pairs.numbers(what)
    tells = np.array([text != none for text in texts], bool)[numbers]
    at = np.flatnonzero(tells[pairs.other] & ~tells[pairs.one])
    taker, first = np.unique(pairs.group[at], return_index=True)
    giver = pairs.other[at[first]]
    values = numbers[pairs.heads].copy()
    values[taker] = numbers[giver]
    takes = np.zeros(len(values), bool)
    takes[taker] = True
    who = pairs.table.column("source").take(pa.array(giver)).combine_chunks()
    source = pc.replace_with_mask(new.column(f"{what}_source").combine_chunks(), pa.array(takes), who)
    new = _put(_put(new, what, pa.array(texts, pa.string()).take(pa.array(values))), f"{what}_source", source)
    apart = np.flatnonzero(tells[pairs.other] & (numbers[pairs.other] != values[pairs.group]))
    about = new.select([what, f"{what}_source"]).take(pa.array(pairs.group[apart])).to_pylist()
    owns, its = (
        pairs.table.select(["key", "source", what]).take(pa.array(rows[apart])).to_pylist()
        for rows in (pairs.one, pairs.other)
    )
    found = []
    for pair, now, own, other in zip(apart.tolist(), about, owns, its, strict=True):
        told = {"kept": now[what], "other": other[what]} if what == "label" else {}
        mine = {"what": what, "key": own["key"], "source": now[f"{what}_source"] or own["source"]}
        found.append((pair, {**mine, "other_key": other["key"], "other_source": other["source"], **told}))
    return new, found


def _licences(pairs: Pairs) -> pa.Array:
    """The licences of kept records, and those of others that they lack."""
    numbers, texts = pairs.numbers("licences")
    lists = [text.split(SEPARATOR)[:-1] for text in texts]
    values = numbers[pairs.heads].copy()
    odd = np.flatnonzero(numbers[pairs.one] != numbers[pairs.other])
    for group, number in dict.fromkeys(zip(pairs.group[odd].tolist(), numbers[pairs.other[odd]].tolist(), strict=True)):
        own = lists[values[group]]
        both = [*own, *(name for name in lists[number] if name not in own)]
        if both not in lists:
            lists.append(both)
        values[group] = lists.index(both)
    return pa.array(lists, SCHEMA.field("licences").type).take(pa.array(values))


def _also(pairs: Pairs) -> pa.Array:
    """The others of each kept record, as JSON."""
    spell: dict[str, Callable[[str], str]] = {
        "source": json.dumps,
        "label": json.dumps,
        "licences": lambda text: json.dumps(text.split(SEPARATOR)[:-1]),
        "boxes": lambda text: str(len(json.loads(text))),
    }
    pieces: list[Any] = [
        '{"key": "',
        pairs.table.column("key").combine_chunks(),
        '"',
    ]  # of a key no character is escaped
    for name in spell:
        numbers, texts = pairs.numbers(name)
        pieces += [f', "{name}": ', pa.array(map(spell[name], texts), pa.string()).take(pa.array(numbers))]
    entries = pc.binary_join_element_wise(*pieces, "}", "").take(pa.array(pairs.other))
    offsets = pa.array(np.append(pairs.begins, len(pairs.other)), pa.int32())
    lists = pc.binary_join(pa.ListArray.from_arrays(offsets, entries), ", ")
    return pc.binary_join_element_wise("[", lists, "]", "")

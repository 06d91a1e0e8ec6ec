"""The card of an ImageNet-S or ImageNet-1k set: README.md in Hugging Face's form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from .card import SIZES, TEXT, WHOLE, table, urls
from .imagenet_s import ImageNetS
from .licences import UNSTATED
from .manifest import Manifest
from .sources.imagenet_s import SEMI

FIELDS: dict[str, tuple[dict[str, str], str]] = {  # of the JSON, in its order: type and meaning
    "variant": (TEXT, "50, 300 or 919; 1k: all of ImageNet-1k"),
    "split": (TEXT, "train, train-semi, validation or test; of 1k train or val"),
    "wnid": (TEXT, "class in this variant, of the official lists"),
    "imagenet_wnid": (TEXT, "class in ImageNet-1k"),
    "class_id": (WHOLE, "the number of `wnid`, as in the masks: from 1; of 1k from 0, -1 where it is not known"),
    "name": (TEXT, "class and file in the official layout"),
    "same_as": (TEXT, "key of the training sample with the same image, of train-semi"),
    "width": (WHOLE, "px, as stored"),
    "height": (WHOLE, "px, as stored"),
}


def text(manifest: Manifest, recipe: ImageNetS, about: dict[str, Any]) -> str:
    """The whole card. about: what imagenet_s.json says."""
    lines = ["---", front(manifest, recipe).rstrip(), "---", "", f"# {manifest.title or manifest.name}", ""]
    lines += [recipe.about, "", recipe.collection.note, ""]
    lines += ["## Splits", "", *table(split_rows(manifest, about)), ""]
    if any(shard.split == SEMI for shard in manifest.shards):
        lines += [f"`{SEMI}` shows images of `train` again, with masks: they are not counted twice.", ""]
    lines += [f"Note: {note}." for note in about["notes"]]
    lines += ["## Between variants", "", *leaks(about), ""] if about["shared_with"] else []
    lines += ["## Reading it", "", *reading(manifest), ""]
    lines += [*table([("field", "what"), *((f"`{name}`", words) for name, (_, words) in FIELDS.items())]), ""]
    lines += ["## Licence", "", *licence(recipe), "", "## Citation", "", recipe.collection.citation or "", ""]
    return "\n".join(lines)


def licence(recipe: ImageNetS) -> Iterator[str]:
    """On what terms images and masks may be used, as their publishers say it."""
    about = recipe.collection
    yield "Its publishers state none." if about.licence == UNSTATED else about.licence
    if about.provider_terms:
        yield f"\nTerms of those who took the pictures: {' '.join(about.provider_terms.split())}"


def split_rows(manifest: Manifest, about: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield ("split", "samples", "published", "missing, by name")
    for split in about["found"]:
        samples = sum(shard.samples for shard in manifest.shards if shard.split == split)
        published = about["published"].get(split)
        lost = about["missing"].get(split, [])
        yield (split, f"{samples:,}", "" if published is None else f"{published:,}", f"{len(lost):,}" if lost else "")


def leaks(about: dict[str, Any]) -> Iterator[str]:
    """How many images other variants use the other way."""
    yield "Images that another variant uses the other way; `imagenet_s.json` names them. Do not tune on one and test on"
    yield "another.\n"
    for other, of in about["shared_with"].items():
        yield f"- variant {other}: " + ", ".join(f"{len(names):,} {how.replace('_', ' ')}" for how, names in of.items())


def reading(manifest: Manifest) -> Iterator[str]:
    members = ", ".join(f"`<key>.{member}`" for member in manifest.members)
    yield f"Plain WebDataset: {members}. Images and masks are the files of their publishers, byte for byte."
    if "seg.png" in manifest.members:
        yield "\n`seg.png`, where there is one: id = R + 256 G; 0 other, 1000 ignored, else `class_id`."
    yield from ("", "```python", "import webdataset", "")
    yield f'for sample in webdataset.WebDataset("{urls(manifest)}", shardshuffle=False).decode("pil"):'
    yield '    sample["jpg"], sample["cls"], sample["json"]["wnid"]'
    yield from ("```", "", "Fields of the JSON, the same in every sample:", "")


def front(manifest: Manifest, recipe: ImageNetS) -> str:
    """YAML front matter: licence, size, files. Hugging Face's names of splits have no hyphens."""
    splits = list(dict.fromkeys(shard.split for shard in manifest.shards))
    files = [{"split": s.replace("-", "_"), "path": f"{manifest.name}-{s}-[0-9]*.tar"} for s in splits]
    struct = [{"name": name, **kind} for name, (kind, _) in FIELDS.items()]
    kinds: dict[str, dict[str, Any]] = {
        "jpg": {"dtype": "image"},
        "seg.png": {"dtype": "image"},
        "json": {"struct": struct},
        "cls": {"dtype": "int64"},
    }
    names = [{"name": member, **kinds[member]} for member in manifest.members]
    keys = [{"name": "__key__", "dtype": "string"}, {"name": "__url__", "dtype": "string"}]
    plain = {
        "license": "other",
        "license_name": "imagenet",
        "pretty_name": manifest.title or manifest.name,
        "size_categories": [next((name for most, name in SIZES if manifest.samples < most), "n>10M")],
        "tags": ["webdataset"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": [*names, *keys]},
    }
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

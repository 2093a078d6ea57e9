"""Validation and test images that a run, now the model of another one, was trained on."""

from __future__ import annotations

from pathlib import Path

from headstart.data.loader import Batches
from headstart.data.sources.samples import some
from headstart.data.used_images import USED_IMAGES, UsedImages, find_lookalikes, list_trained
from headstart.events import Decision
from headstart.planning.draft import Draft
from headstart.storage.durable import read_folder

_NAMED = 3


def name_trained_before(draft: Draft) -> Draft:
    """The draft with a decision on held-out images that the weights have seen: their metrics come out too good."""
    if draft.opened.bundle is None:
        return draft
    bundle = Path(draft.opened.spec)
    content = read_folder(bundle, only=USED_IMAGES).get(USED_IMAGES)
    if content is None:  # of an earlier headstart
        return draft
    used = UsedImages.from_bytes(content, where=str(bundle / USED_IMAGES))
    for noun, split in (("validation", draft.images.val), ("test", draft.images.test)):
        names = list_trained(split.samples if split is not None else (), used)
        if names and split is not None:
            value = f"{len(names)} of {len(split.samples)} {noun} images ({some(names, limit=_NAMED)})"
            why = f"{bundle} was trained on them, so that the {noun} comes out too good; keep its split, or give others"
            draft = draft.decide(Decision("seen before", value, why))
        if split is not None:
            draft = _name_lookalikes(draft, noun, split, used, bundle)
    return draft


def _name_lookalikes(draft: Draft, noun: str, split: Batches, used: UsedImages, bundle: Path) -> Draft:
    scan = draft.images.scan
    records = [sample.record for sample in split.samples]
    names = find_lookalikes(records, scan.fingerprints, scan.hashes, used)
    if not names:
        return draft
    value = f"{len(names)} of {len(records)} {noun} images look as images that it was trained on do"
    why = f"{bundle}: resized or saved again ({some(names, limit=_NAMED)}), they make the {noun} too good; remove them"
    return draft.decide(Decision("seen before", value, why))

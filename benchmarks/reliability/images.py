"""P7: damaged images cost only themselves, and no file kills the process.

python -m benchmarks.reliability.images [--images 1000] [--damaged 50] [--mutants 400] [--seed 0]

Twelve kinds of damage over three splits, skipped when told: each is named with its reason, and the run has the bits of
one on the data without them. Then mutants (bytes flipped, cut, put in, taken out) of six formats.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.reliability.results import keep
from headstart.data.decoding.decode import FORMATS
from tests.reliability.damaged_images import DAMAGES, deaths, skipped_like_absent


def main() -> None:
    """Both parts; keep what they show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--damaged", type=int, default=50)
    parser.add_argument("--mutants", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command = "python -m benchmarks.reliability.images"
    named = equal = 0
    for splits in (("train", "train", "train", "val", "test"), ("",)):  # given, and made by the seed
        with tempfile.TemporaryDirectory() as folder:
            counts = {"images": args.images, "damaged": args.damaged}
            one, same = skipped_like_absent(Path(folder), **counts, splits=splits, seed=args.seed)
        named, equal = named + one, equal + same
    keep(
        "P7",
        what=f"{args.damaged} of {args.images} images damaged in {len(DAMAGES)} ways and skipped: named with reason in "
        "plan and report; the run's bits are those without them (splits given and made, 0 and 2 loading processes)",
        goal=f"{2 * args.damaged} of {2 * args.damaged} named, 4 of 4 runs equal",
        found=f"{named} of {2 * args.damaged} named, {equal} of 4 runs equal",
        met=named == 2 * args.damaged and equal == 4 and args.damaged == 50, command=command,
    )  # fmt: skip
    found = {kind: deaths(kind, mutants=args.mutants, seed=args.seed) for kind in FORMATS}
    died = sum(one for one, _ in found.values())
    total = args.mutants * len(FORMATS)
    keep(
        "P7", what=f"{len(FORMATS)} formats, {args.mutants} mutants each: process deaths or other errors",
        goal="0 of 2,400", found=f"{died} of {total:,}", met=died == 0 and total >= 2400, command=command,
        refused={kind: refused for kind, (_, refused) in found.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()

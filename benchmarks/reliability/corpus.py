"""P5: every malicious artefact through every command that could read it, in one watched process with limited memory.

python -m benchmarks.reliability.corpus      about 5 minutes on an idle core

The artefacts, the watch and the laws are those of tests/security; the default tests run one or two commands of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.reliability.results import keep

SECURITY = Path(__file__).parents[2] / "tests" / "security"


def main() -> None:
    """Run, count what broke which law, and keep the figures."""
    sys.path.insert(0, str(SECURITY))
    from verdicts import LAWS

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        env = os.environ | {"MPLCONFIGDIR": str(root / "mpl"), "OMP_NUM_THREADS": "1"}
        child = [sys.executable, "-W", "ignore", str(SECURITY / "child.py"), str(root / "world"), str(root / "r.json")]
        subprocess.run(child, check=True, env=env)
        found = json.loads((root / "r.json").read_text())
    results = found["results"]
    broken = {law: [result for result in results if breaks(result)] for law, breaks in LAWS.items()}
    for law, ones in broken.items():
        for result in ones:
            print(
                f"{law}: {result['artefact']}: {' '.join(result['argv'][:3])}: {result['code']} {result['err'][-200:]}"
            )
    refused = sum(result["code"] in (2, 4) for result in results)
    controls = sum(bool(control["seen"] and control["marked"]) for control in found["controls"])
    common = {"command": "python -m benchmarks.reliability.corpus"}
    keep(
        "P5", what=f"{found['artefacts']} malicious artefacts, {len(results):,} commands: code executed or hosts contacted",  # noqa: E501
        goal="0", found=str(len(broken["executed"])), met=not broken["executed"], **common,
        note=f"control: {controls} of {len(found['controls'])} payloads seen by the watch where they do run",
    )  # fmt: skip
    keep(
        "P5", what="the same: files written outside the run folder", goal="0", found=str(len(broken["wrote outside"])),
        met=not broken["wrote outside"], **common,
    )  # fmt: skip
    bad = {id(r) for law in ("wrong exit code", "no clear message", "not named") for r in broken[law]}
    keep(
        "P5", what="the same: refused in one message with exit code 2 or 4, or harmless and done", goal="all",
        found=f"{len(results) - len(bad):,} of {len(results):,} ({refused:,} refused); peak memory "
        f"{found['peak_bytes'] / 1e9:.1f} GB", met=not bad, **common,
        note="harmless: records of a run folder that the command does not use, or links that it replaces",
    )  # fmt: skip


if __name__ == "__main__":
    main()

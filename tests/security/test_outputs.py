"""What headstart writes is opened by others: markup, formulas, terminal codes and secrets do not get through."""

from __future__ import annotations

import csv
import html.parser
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.cli.main import main

SMALL = "--model timm/test_resnet --weights none --image-size 32 --recipe full --epochs 1 --workers 0 --device cpu"
NAMES = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0", "-1.5", "@sum(a1)",
    "'=1+1", "{{ 7*7 }}", "\x1b[31mred\x1b[0m", "<!-- -->]]>&#60;b&#62;", "`| [a](javascript:alert(1))",
)  # fmt: skip
FILES = ("<img src=x onerror=alert(2)>.png", "=1+1.png", '" onmouseover="alert(3).png', "{{config}}.png", "-x.png")


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


CANARIES = {
    name: f"canary-{place:02}-7f3a"
    for place, name in enumerate((
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY",
        "GITHUB_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "COMET_API_KEY", "MLFLOW_TRACKING_PASSWORD", "DATABASE_URL",  # noqa: E501
        "PGPASSWORD", "SSH_AUTH_SOCK", "NETRC", "CLEARML_API_SECRET_KEY", "NEPTUNE_API_TOKEN", "AZURE_CLIENT_SECRET",
    ))
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    draw = np.random.default_rng(0)
    rows = []
    for place, name in enumerate(NAMES):
        for number in range(3):
            file = FILES[place] if number == 0 and place < len(FILES) else f"{place}-{number}.png"
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / file)
            rows.append((file, name, "val" if number == 0 else "train"))
    with (root / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "split"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CANARIES.items():
            patch.setenv(name, value)
        patch.setenv("HTTPS_PROXY", "http://user:canary-17-7f3a@127.0.0.1:9")
        patch.setenv("HF_ENDPOINT", "http://user:canary-18-7f3a@127.0.0.1:9")
        assert main(["train", str(root / "t.csv"), *SMALL.split(), "--out", str(root / "run")]) == 0
    return root / "run"


def test_the_report_escapes_every_name_and_loads_nothing(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "default-src 'none'" in text[: text.index("<style>")]
    assert not {"script", "iframe", "object", "embed", "base", "form", "link"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert all(str(attrs["src"]).startswith("data:image/") for tag, attrs in page.tags if tag == "img")
    assert not [attrs for _, attrs in page.tags if "javascript:" in str(attrs.get("href"))]
    for name in (*NAMES[:2], *FILES[:3]):
        assert name in page.text, name
    assert "{{ 7*7 }}" in page.text


def test_no_cell_of_predictions_is_a_formula_and_the_report_reads_them_back(run: Path) -> None:
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(NAMES)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {"'-1.5", "''=1+1", "'@sum(a1)"} <= {row[1] for row in rows}
    before = (run / "report.html").read_bytes()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == before


def test_predict_keeps_terminal_codes_and_formulas_out(run: Path, capsys) -> None:
    images = [str(path) for path in sorted(run.parent.glob("*.png"))]
    for form in ("table", "csv", "json"):
        assert main(["predict", str(run), *images, "--format", form]) == 0
        said = capsys.readouterr()
        assert "\x1b" not in said.err + (said.out if form != "csv" else "")
    assert main(["predict", str(run), "\x1b[2Jgone.png"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_no_secret_is_in_any_output(run: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"7f3a" in path.read_bytes()] == []
    secret = "http://user:canary-19-7f3a@127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", secret)
    monkeypatch.setenv("HF_HOME", str(run.parent / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    out = run.parent / "run2"
    assert main(["train", str(run.parent / "t.csv"), "--model", "hf-hub:a/b", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "127.0.0.1:9" in said.err
    assert "7f3a" not in said.err + said.out
    assert not out.exists()
    assert os.environ["HF_ENDPOINT"] == secret

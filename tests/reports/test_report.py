from __future__ import annotations

import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

import headstart.reports.report as page
from headstart.reports.headline import summarise
from headstart.reports.report import render, report, write_report
from headstart.reports.run_record import read_record

XSS = "<script>alert(1)</script>"
CHROMIUM = Path("/usr/bin/chromium")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, their texts and attributes; notes elements closed in the wrong order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.misnested: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def opened(run: Path) -> Page:
    return Page(report(run).read_text(encoding="utf-8"))


TASKS = [
    ("classify", ("ant", "bee", "cat")),
    ("classify", tuple(f"class {k}" for k in range(40))),
    ("multilabel", ("desert", "sea", "sunset")),
    ("regress", ("price",)),
    ("regress", ("price", "area")),
]


@pytest.mark.parametrize(("task", "names"), TASKS)
def test_the_page_is_one_well_formed_file_without_scripts_or_remote_resources(
    fake_run, task: str, names: tuple[str, ...]
):
    run = fake_run(task, names=names)
    found = opened(run)
    assert found.misnested == []
    assert found.open == []
    assert not [tag for tag, _ in found.tags if tag in ("script", "link", "iframe", "object", "base")]
    for _, attrs in found.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#"))
    assert "url(http" not in (run / "report.html").read_text(encoding="utf-8")
    policy = next(attrs["content"] for attrs in found.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert all(attrs.get("alt") for attrs in found.all("img"))
    assert all(attrs.get("aria-label") for attrs in found.all("svg"))


@pytest.mark.parametrize(("task", "names"), TASKS[2:4])
def test_the_same_run_gives_the_same_bytes(fake_run, task: str, names: tuple[str, ...]):
    run = fake_run(task, names=names)
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_the_result_comes_first_with_interval_and_baseline(fake_run):
    text = opened(fake_run("classify")).text
    start = text.index("88.9 %")  # 40 of 45
    assert text.index("95 % interval 76.5 to 95.2 %") > start
    assert text.index("baseline 33.3 %, always ant") > start
    assert text.index("How it learned") > text.index("always ant")
    for said in ("timm/mobilenetv2_100.ra_in1k", "180 to train, 45 to validate", "1 min 13 s on cpu", "negative log"):
        assert said in text


def test_the_test_images_are_the_headline_with_their_interval_predictions_and_tables(fake_run, edit_json):
    run = fake_run("classify")
    assert "on the test images" not in opened(run).text
    edit_json(run / "result.json", lambda result: result.update(test_metrics={"accuracy": 0.75, "nll": 0.4}))
    found = summarise(read_record(run))  # of a version that kept no test predictions: the number alone
    assert (found.on, found.rows_on, found.metrics[0].interval) == ("test", "validation", None)
    rows = (run / "predictions.csv").read_text().splitlines()
    wrong = ["img004.png,bee,cat,0.8"]  # 1 of 4; beside it 5 of 45 of the validation's are wrong
    (run / "predictions_test.csv").write_text("\n".join([*rows[:4], *wrong]) + "\n")
    found = summarise(read_record(run))
    assert (found.on, found.rows_on, found.scores.total) == ("test", "test", 4)
    main = found.metrics[0]
    assert (main.value, main.validation) == (0.75, pytest.approx(40 / 45))
    assert (round(main.interval.low, 3), round(main.interval.high, 3)) == (0.301, 0.954)  # Wilson, 3 of 4
    assert (main.baseline, main.baseline_says) == (0.5, "always bee")
    assert found.headline.startswith("accuracy: 75.0 % on the test images (95 % interval 30.1 to 95.4 %; always bee")
    text = opened(run).text
    assert text.index("75.0 %") < text.index("accuracy, on the test images") < text.index("88.9 %")
    assert "on the validation images" in text and "Other test images" in text and "img005.png" not in text


def test_the_baseline_is_the_class_most_frequent_in_validation(fake_run, edit_json):
    run = fake_run("classify", images=44)  # 15 ants, 15 bees, 14 cats
    edit_json(run / "plan.json", lambda plan: plan["data"]["class_counts"]["train"].update(cat=99))
    main = summarise(read_record(run)).metrics[0]
    assert (main.baseline, main.baseline_says) == (15 / 44, "always ant")


def test_a_result_that_is_no_better_than_a_guess_says_so(fake_run, edit_json):
    run = fake_run("classify", names=("ant", "bee"), images=20)
    assert summarise(read_record(run)).remarks == ()
    rows = [f"img{k:03}.png,{'ant' if k % 4 else 'bee'},ant,0.9" for k in range(20)]
    (run / "predictions.csv").write_text("\n".join(["id,truth,prediction,confidence", *rows]) + "\n")
    edit_json(run / "result.json", lambda result: result["metrics"].update(accuracy=0.75))
    (remark,) = summarise(read_record(run)).remarks
    assert remark == "No better than always ant: accuracy 75.0 %, against 75.0 %."
    assert remark in opened(run).text
    rows[0] = "img000.png,bee,bee,0.9"
    (run / "predictions.csv").write_text("\n".join(["id,truth,prediction,confidence", *rows]) + "\n")
    edit_json(run / "result.json", lambda result: result["metrics"].update(accuracy=0.8))
    (remark,) = summarise(read_record(run)).remarks
    assert remark == "Not clearly better than always ant: the 95 % interval holds its 75.0 %."


def test_fine_tuning_that_did_not_beat_the_probe_says_so(fake_run, edit_json):
    run = fake_run("classify")  # 2 epochs of the head, then 4 of all layers, each better than the one before
    assert summarise(read_record(run)).remarks == ()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "epoch" and event["phase"]:
            event["metrics"]["accuracy"] -= 0.5
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (remark,) = summarise(read_record(run)).remarks
    assert remark.startswith("Fine-tuning did not beat the probe: validation accuracy ")
    assert "with the head alone, 38.9 % at best afterwards." in remark
    assert remark in opened(run).text
    edit_json(run / "plan.json", lambda plan: plan["phases"][1].update(freeze="backbone"))  # a probe that was extended
    assert summarise(read_record(run)).remarks == ()


def test_numbers_are_named_by_their_target_and_held_against_the_median_and_the_mean(fake_run):
    run = fake_run("regress", names=("price",))
    found = summarise(read_record(run))
    mae, rmse, r2 = found.metrics
    assert [one.label for one in found.metrics] == [
        "mean absolute error of price", "root mean squared error of price", "R² of price",
    ]  # fmt: skip
    truths = [float(row["truth:price"]) for row in read_record(run).predictions]
    assert mae.baseline_says == f"always {statistics.median(truths):,.0f}, the median"
    assert rmse.baseline_says == f"always {statistics.mean(truths):,.0f}, the mean"
    assert (r2.baseline, r2.baseline_says) == (0.0, "always the mean")
    assert found.headline.startswith("mean absolute error of price: ")


def test_every_task_shows_what_belongs_to_it(fake_run, tmp_path):
    text = opened(fake_run("multilabel", names=("sea", "sun"))).text
    assert "mean average precision" in text
    assert "prevalence" in text
    assert "Which classes it confuses" not in text


def test_several_targets_are_told_one_by_one_in_their_units_and_together_by_their_shares(fake_run):
    run = fake_run("regress", names=("price", "area"))
    found, page = summarise(read_record(run)), opened(run)
    main = found.metrics[0]
    assert (main.key, main.baseline, main.baseline_says) == ("relative_mae", 1.0, "always each target's median")
    price, area = found.scores.targets
    shares = [target.mae / target.baseline_mae for target in (price, area)]
    assert main.value == pytest.approx(statistics.mean(shares))
    assert main.interval.low < main.value < main.interval.high
    assert found.mismatch == ""
    assert not {"mae", "rmse"} & {one.key for one in found.metrics}  # dollars and square metres have no mean
    assert "Each target, in its own unit" in page.text
    assert "mean absolute error, as a share of the baseline's, mean over 2 targets" in page.text
    for target in (price, area):
        assert f"{target.baseline_mae:.4g}" in page.text or f"{target.baseline_mae:,.0f}" in page.text
    assert page.text.count("Truth against prediction") == 2
    assert "Validation mean absolute error, as a share" in page.text  # what is kept is what is plotted


def test_the_metric_that_was_asked_for_is_the_headline(fake_run):
    run = fake_run("classify")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config + "metric: macro_f1\n")
    found = summarise(read_record(run))
    assert found.metrics[0].key == "macro_f1"
    assert "Validation macro F1" in opened(run).text


@pytest.mark.parametrize(("classes", "named"), [(13, True), (40, True), (120, False)])
def test_a_matrix_of_many_classes_is_a_whole_picture_with_the_most_confused_pairs(fake_run, classes: int, named: bool):
    run = fake_run("classify", names=tuple(f"class {k}" for k in range(classes)), images=2 * classes)
    found = opened(run)
    (picture,) = [attrs for attrs in found.all("svg") if attrs.get("class") == "heat"]
    scores = summarise(read_record(run)).scores
    assert f"{scores.correct} of {2 * classes} images on the diagonal" in str(picture["aria-label"])
    cells = [(i, j) for i, line in enumerate(scores.confusion) for j, number in enumerate(line) if number]
    page = (run / "report.html").read_text()
    for i, j in cells:
        total = sum(scores.confusion[i])
        assert f"<title>class {i} called class {j}: {scores.confusion[i][j]} of {total}</title>" in page
    assert page.count("<title>class ") == len(cells)
    assert (">class 12</text>" in page) is named
    assert "most frequent confusions" in found.text
    assert f"Table of {classes} classes" in found.text or classes <= 15


def test_more_classes_than_a_page_has_room_for_get_the_most_confused_pairs_alone(fake_run):
    text = opened(fake_run("classify", names=tuple(f"class {k}" for k in range(201)), images=300)).text
    assert "most frequent confusions of the validation images, of 3" in text
    assert "Shade: share of the row" not in text


def test_the_page_has_its_date_and_the_line_that_repeats_the_run(fake_run, edit_json, monkeypatch):
    run = fake_run("classify")
    monkeypatch.chdir(run.parent)
    assert "Date" not in opened(Path("run")).text.split("How it learned")[0]
    lines = "2026-11-30 23:59:59 UTC  started\n2026-12-01 08:31:21 UTC  finished: step 48\n"
    (run / "log.txt").write_text(lines)
    text = opened(Path("run")).text
    assert "Date 2026-12-01 08:31 UTC" in text
    assert "headstart train --repeat run" in text
    edit_json(
        run / "environment.json", lambda facts: facts.update(inexact=[{"step": 8, "changed": {"torch": ["1", "2"]}}])
    )
    assert "--repeat" not in opened(Path("run")).text  # it would be refused
    edit_json(run / "plan.json", lambda plan: plan.update(began={"module": "ab" * 32}))
    edit_json(run / "environment.json", lambda facts: facts.pop("inexact"))
    assert "hs.repeat('run', model=net)" in opened(Path("run")).text


def test_names_that_are_markup_are_shown_and_not_run(fake_run, edit_json):
    run = fake_run("classify", names=(XSS, 'a"onload=x', "$\\frac"))
    edit_json(run / "plan.json", lambda plan: plan["phases"][0].update(name=XSS, frozen_modules=[XSS]))
    edit_json(run / "plan.json", lambda plan: plan["data"]["unreadable"].append({"path": XSS, "reason": XSS}))
    edit_json(run / "plan.json", lambda plan: plan["decisions"].append({"name": XSS, "value": XSS, "reason": XSS}))
    edit_json(run / "environment.json", lambda facts: facts.update({XSS: XSS}))
    rows = (
        (run / "predictions.csv")
        .read_text(encoding="utf-8")
        .replace("img004.png", '"<img src=x onerror=alert(1)>.png"')
    )
    (run / "predictions.csv").write_text(rows, encoding="utf-8")
    (run / "config.yaml").write_text(f"data:\n  source: '{XSS}'\n", encoding="utf-8")
    html = report(run).read_text(encoding="utf-8")
    found = Page(html)
    assert "<script" not in html
    assert "<img src=x" not in html
    assert not [attrs for _, attrs in found.tags if "onerror" in attrs or "onload" in attrs]
    assert found.text.count(XSS) > 10


def test_worst_mistakes_are_the_surest_ones_and_all_pictures_are_inline(fake_run):
    found = opened(fake_run("classify"))
    images = found.all("img")
    assert len(images) == 5 + 12  # wrong ones, others
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert all(max(int(image["width"]), int(image["height"])) <= 160 for image in images)
    text = found.text[found.text.index("Worst mistakes") : found.text.index("Other validation images")]
    sure = [int(number) for number in re.findall(r"(\d+) % sure", text)]
    assert len(sure) == 5
    assert sure == sorted(sure, reverse=True)


def test_pictures_that_are_gone_are_said_to_be(fake_run):
    run = fake_run("classify")
    shutil.rmtree(run.parent / "data")
    found = opened(run)
    assert found.all("img") == []
    assert found.text.count("not shown: no longer where it was") == 17


def test_a_name_that_leads_out_of_the_data_folder_is_not_followed(fake_run):
    run = fake_run("classify")
    shutil.copy(run.parent / "data" / "img004.png", run.parent / "private.png")
    rows = (run / "predictions.csv").read_text(encoding="utf-8")
    rows = rows.replace("img004.png", "../private.png").replace("img013.png", str(run.parent / "private.png"))
    (run / "predictions.csv").write_text(rows, encoding="utf-8")
    found = opened(run)
    assert found.text.count("not shown: its name leads out of the data folder") == 2
    assert len(found.all("img")) == 15


def test_a_picture_that_cannot_be_read_is_shown_with_its_reason(fake_run):
    run = fake_run("classify")
    (run.parent / "data" / "img004.png").write_bytes(b"nothing")
    assert "not shown: " in opened(run).text


def test_the_images_of_a_table_are_found_beside_it(fake_run, edit_json):
    run = fake_run("regress", names=("price",))
    data = run.parent / "data"
    shutil.move(data, run.parent / "images")
    table = run.parent / "houses.csv"
    edit_json(run / "plan.json", lambda plan: plan["data"].update(source=str(table)))
    assert len(opened(run).all("img")) == 24


def test_large_pictures_do_not_make_a_large_page(fake_run, monkeypatch):
    monkeypatch.setattr("headstart.reports.pictures._MOST_BYTES", 9000)
    found = opened(fake_run("classify"))
    assert 0 < len(found.all("img")) < 17
    assert "left out to keep this file small" in found.text


def test_an_unfinished_run_says_so_and_how_to_go_on(fake_run):
    text = opened(fake_run("classify", finished=False)).text
    assert "not finished: 6 epochs and 48 steps done" in text
    assert "--resume" in text
    assert "95 % interval 7" not in text


def test_a_run_without_an_epoch_has_a_page(fake_run):
    run = fake_run("multilabel", finished=False)
    (run / "events.jsonl").unlink()
    assert "no epoch is finished" in opened(run).text


def test_a_result_that_its_predictions_contradict_is_pointed_out(fake_run, edit_json):
    run = fake_run("classify")
    assert "one of the two files was changed" not in opened(run).text
    edit_json(run / "result.json", lambda result: result["metrics"].update(accuracy=0.99))
    assert "result.json says 0.99, but predictions.csv gives 0.888889" in opened(run).text


def test_what_was_trained_and_decided_is_listed(fake_run):
    text = opened(fake_run("classify")).text
    for said in ("backbone", "2,223,872", "3 frozen modules", "conv_stem", "auto: this device is a CPU",
                 "broken.png truncated", "img001.png , img002.png", "312 of 314 tensors loaded, head new", "seed: 42",
                 "torch 2.15.0"):  # fmt: skip
        assert said in text


def test_the_bottleneck_of_training_is_named(fake_run):
    run = fake_run("classify")
    assert "input 75 %, compute 25 % of" in render(read_record(run))  # of a version that told of no copying
    events = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(
        events.replace('"input_seconds": 6.0', '"input_seconds": 6.0, "copy_seconds": 0.8')
    )
    assert "input 75 %, compute 15 %, copy 10 % of" in render(read_record(run))


def test_a_freeze_rule_reads_as_it_is_written(fake_run, edit_json):
    run = fake_run("classify")
    edit_json(run / "plan.json", lambda plan: plan["phases"][0].update(freeze={"names": ["bn*", "conv1"]}))
    assert "names: bn*, conv1" in opened(run).text


def test_commands_name_the_run_as_it_is_typed_here(fake_run, monkeypatch):
    run = fake_run("classify")
    monkeypatch.chdir(run.parent)
    text = opened(Path("run")).text
    assert "headstart predict run IMAGE_OR_FOLDER" in text
    assert "timm.create_model('local-dir:run/model', pretrained=True)" in text
    (run / "config.yaml").write_text("head: {kind: linear, at: conv_head}\n", encoding="utf-8")
    assert "timm.create_model" not in opened(Path("run")).text


def test_the_home_folder_is_not_in_the_page(fake_run, monkeypatch):
    run = fake_run("classify")
    monkeypatch.setenv("HOME", str(run.parent))
    assert str(run.parent) not in report(run).read_text(encoding="utf-8")


def test_a_file_name_that_is_no_utf8_does_not_stop_the_page(fake_run):
    run = fake_run("classify")
    raw = (run / "predictions.csv").read_bytes().replace(b"img004.png", b"img\xff.png")
    (run / "predictions.csv").write_bytes(raw)
    assert "img\\udcff.png" in opened(run).text


def test_a_plan_with_only_its_task_is_enough_for_a_page(fake_run):
    run = fake_run("classify", finished=False)
    plan = {"task": {"kind": "classify", "classes": ["a", "b"]}}
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert "Classification, 2 classes" in Page(render(read_record(run))).text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.24, "4.2 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (3725, "1 h 02 min"), (None, "–")],
)
def test_durations_read_like_a_clock(seconds: float | None, text: str):
    assert page.duration(seconds) == text


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_matrix_is_whole_at_any_width(fake_run, width: int):
    from playwright.sync_api import sync_playwright

    path = report(fake_run("classify", names=tuple(f"a class called {k}" for k in range(34)), images=90))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": width, "height": 800})
        view.goto(path.as_uri())
        box = view.evaluate(
            "(({left, right}) => [left, right])(document.querySelector('.heat').getBoundingClientRect())"
        )
        assert 0 <= box[0] < box[1] <= width
        assert view.evaluate("document.documentElement.scrollWidth") == width
        browser.close()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_without_complaint_and_without_asking_for_anything(fake_run, scheme: str):
    from playwright.sync_api import sync_playwright

    path = report(fake_run("classify", names=(XSS, "bee", "cat")))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        told: list[str] = []
        view.on("console", lambda message: told.append(message.text))
        view.on("pageerror", lambda error: told.append(str(error)))
        view.on(
            "request",
            lambda request: told.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        view.goto(path.as_uri())
        assert told == []
        assert view.evaluate("document.documentElement.scrollWidth") == 390  # wide tables scroll, the page does not
        assert view.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        paper = view.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
        browser.close()

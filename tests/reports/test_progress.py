"""Progress: decisions with their reasons first, one line per epoch without a terminal, a live line with one."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

import headstart as hs
from headstart.events import Decided, Decision, EpochDone, Note, PhaseStarted, Plan, ScanProgress, StepDone
from headstart.reports.cautions import list_warnings
from headstart.reports.cells import duration, format_ms
from headstart.reports.notebook import NotebookTable, in_notebook
from headstart.reports.progress import Progress, open_watch

DECIDED = Decided(Plan(decisions=(Decision(name="precision", value="fp32", reason="auto: measured"),), document={}))


def step(number: int) -> StepDone:
    facts = {"loss": 0.5, "weight": 8.0, "grad_norm": 1.0, "lr": 0.1, "head_lr": 0.1, "images": 8, "seconds": 2.0}
    return StepDone(step=number, epoch=(number - 1) // 4 + 1, steps_in_epoch=4, **facts)


def events() -> list[object]:
    told: list[object] = [ScanProgress(1, 2), ScanProgress(2, 2), DECIDED]
    told.append(PhaseStarted(index=0, name="probe", epochs=2, trainable=30, frozen=5000))
    for epoch in (1, 2):
        told += [step(4 * (epoch - 1) + i) for i in (1, 2, 3, 4)]
        told.append(
            EpochDone(
                epoch=epoch,
                step=4 * epoch,
                phase=0,
                train_loss=0.25,
                seconds=61,
                input_seconds=45,
                copy_seconds=6.1 if epoch == 2 else 0,
                images_per_second=4,
                metrics={"accuracy": 0.9},
            )
        )
    return [*told, Note("done [bold]\x1b[31m"), SimpleNamespace()]


def shown(*, terminal: bool, decisions: bool = True) -> str:
    screen = io.StringIO()
    console = Console(
        file=screen, force_terminal=terminal, width=200, highlight=False, soft_wrap=True, color_system=None
    )
    with Progress(decisions=decisions, console=console) as progress:
        for event in events():
            progress(event)
    return screen.getvalue()


def test_without_a_terminal_there_are_plain_lines() -> None:
    assert shown(terminal=False).splitlines() == [
        "reading images: 2 of 2",
        "precision: fp32  (auto: measured)",
        "phase probe: 2 epochs; 30 parameters train, 5,000 are frozen",
        "epoch 1: loss 0.2500  accuracy 0.9000  4 images/s  1 min 01 s (input 74 %, compute 26 %)",
        "epoch 2: loss 0.2500  accuracy 0.9000  4 images/s  1 min 01 s (input 74 %, compute 16 %, copy 10 %)",
        "done [bold]\\x1b[31m",
    ]


def test_long_epochs_say_in_between_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.reports.progress._PLAIN_EVERY_SECONDS", 0.0)
    assert "epoch 1: step 2 of 4  loss 0.5000  4 images/s  12 s left in phase probe" in shown(terminal=False)


def test_a_terminal_gets_a_live_line_with_rate_and_time_left() -> None:
    text = shown(terminal=True)
    assert "4/4  loss 0.5000  4 images/s  8 s left" in text
    assert "epoch 2: loss 0.2500  accuracy 0.9000" in text


def test_a_plan_that_is_printed_anyway_is_not_told_twice() -> None:
    assert "precision" not in shown(terminal=False, decisions=False)


def test_a_resumed_phase_counts_from_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.reports.progress._PLAIN_EVERY_SECONDS", 0.0)
    screen = io.StringIO()
    with Progress(console=Console(file=screen, width=200)) as progress:
        progress(PhaseStarted(index=0, name="full", epochs=2, trainable=1, frozen=0))
        progress(step(3))
    assert "epoch 1: step 3 of 4" in screen.getvalue()
    assert "10 s left" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.14, "140 ms"),
        (0.96, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_run_in_python_shows_a_line_per_epoch_unless_watch_is_none(settings, capsys) -> None:
    config = hs.load_config(settings(recipe="full"))
    run = hs.train(config)
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch ")] == ["epoch 1: ", "epoch 2: "]
    assert any(line.startswith("recipe: full (full 2 epochs)") for line in lines) and told.out == ""
    hs.train(config, resume=True, watch=None)
    hs.plan(config)
    assert capsys.readouterr() == ("", "")
    hs.finish(run.path)
    with pytest.raises(AssertionError):
        hs.train(config, resume=True, watch="silent")


def test_a_notebook_gets_a_table_that_grows(monkeypatch) -> None:
    drawn: list[str] = []
    handle = SimpleNamespace(update=lambda page: drawn.append(page))
    display = SimpleNamespace(HTML=str, display=lambda *_, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with open_watch("progress") as watch:
        for event in events():
            watch(event)
    last = drawn[-1]
    assert last.count("<tr><td>1</td><td>0.2500</td><td>0.9000</td><td>4</td><td>1 min 01 s</td></tr>") == 1
    assert last.startswith("<table><tr><th>epoch</th><th>loss</th><th>accuracy</th><th>images/s</th><th>time</th></tr>")
    assert '<summary>what was decided, and why</summary><table><tr><td style="text-align:left">precision</td>' in last
    assert "<div>done [bold]\\x1b[31m</div>" in last and "step" not in last
    assert len(drawn) < len(events())


def test_a_notebook_shows_the_warnings_in_a_block_with_what_to_do() -> None:
    drawn: list[str] = []
    watch = NotebookTable(drawn.append)
    warnings = [{"text": "val has no image of <b>", "advice": "give --data.val 0.3"}, {"text": "two", "advice": "look"}]
    watch(Decided(Plan(decisions=(), document={"warnings": warnings})))
    watch(EpochDone(epoch=1, step=4, train_loss=0.25, seconds=1, images_per_second=4, metrics={"accuracy": 0.9}))
    watch.close()
    block = drawn[-1].partition("</table>")[2]
    assert block.startswith(
        "<div><b>2 warnings:</b><ul><li>val has no image of &lt;b&gt;<br><i>What to do:</i> give --data.val 0.3</li>"
    )
    assert list_warnings({"warnings": warnings})[:2] == ["2 warnings:", "- val has no image of <b>"]
    watch(Decided(Plan(decisions=(), document={})))
    assert "warning" not in drawn[-1]


def test_a_terminal_is_no_notebook(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_milliseconds_are_written_as_people_write_them() -> None:
    assert [format_ms(seconds) for seconds in (0.00725, 0.14, 1.2849, 25.3)] == [
        "7.25 ms", "140 ms", "1,280 ms", "25,300 ms",
    ]  # fmt: skip

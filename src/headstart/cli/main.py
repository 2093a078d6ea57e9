"""Entry point of ``headstart``: finds the verb, and turns errors into messages and exit codes."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata

from headstart.cli.leaving import leave_at_once, leaving_on_signals, to_go_on
from headstart.cli.output import write
from headstart.config.home import expand_home
from headstart.config.synonyms import VERB_ADVICE
from headstart.config.synonyms import VERBS as SYNONYMS
from headstart.errors import Error, Interrupted, OthersFailed
from headstart.reports.cells import cell
from headstart.wording import write_options_as

VERBS = {  # a verb's module is imported when it is called
    "demo": "train the starter on handwritten digits, offline, and write a report",
    "train": "fine-tune a model on your images",
    "plan": "decide everything as train would, and train nothing",
    "finish": "the model of a run that was stopped, at its best epoch so far",
    "evaluate": "metrics of a finished run on other images",
    "predict": "classes, tags or numbers for images and folders",
    "embed": "features of images and folders, by a run's model or a pretrained one",
    "export": "a finished run's model for other runtimes: ONNX, OpenVINO, torch.export, timm",
    "serve": "a finished run over HTTP: POST /predict, and a page to try it on",
    "describe": "a model as a tree: shapes, parameters, head, each group's rate, what a freeze rule freezes",
    "models": "models by name, size, top-1, speed and licence; --measure times them on this machine",
    "report": "write a run's report again",
    "cache": "list or clear what runs keep: activations, decoded images",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 the user's mistake, 4 storage, 129, 130 or 143
    interrupted.
    """
    with write_options_as("flags"):
        code = _exit_code(list(sys.argv[1:] if argv is None else argv), ends=argv is None)
    if argv is None and code and "RANK" in os.environ:
        leave_at_once(code)
    return code


def _exit_code(words: list[str], *, ends: bool) -> int:
    """The exit code of a command, its error printed. ``ends``: the process ends with the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names that are not UTF-8
    if "RANK" in os.environ:  # one of several processes: torch's C++ warnings would be printed by each
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with leaving_on_signals(words, put_back=not ends):
            return _dispatch(words)
    except OthersFailed as error:  # another process of the run says why
        return error.exit_code
    except Interrupted as stop:
        _complain(f"{stop.what}{to_go_on(words)}")
        if ends:  # all is saved and closed; a second signal must find nothing to interrupt
            os._exit(stop.exit_code)
        return stop.exit_code
    except Error as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain(f"interrupted{to_go_on(words)}")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, e.g. head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except SystemExit as leaving:  # tyro: 0 after --help, 2 after a mistake
        return leaving.code if isinstance(leaving.code, int) else 2
    except Exception:  # the process's edge: whatever is left is a mistake of ours
        traceback.print_exc()
        _complain("this is a bug in headstart, not in what you typed; please report it with the lines above")
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        write(overview())
        return 0
    if words[0] in ("--version", "-V"):
        write(f"headstart {metadata.version('headstart')}")
        return 0
    if words[0] not in VERBS:
        raise Error(_explain_verb(words[0]))
    return int(import_module(f"headstart.cli.{words[0]}").run(words[1:]))


def _explain_verb(word: str) -> str:
    """The sentence for a word that is no command: what other tools call one, a near name, or a folder."""
    plain = word.lower().lstrip("-")
    commands = f"(commands: {', '.join(VERBS)})"
    if plain in VERB_ADVICE:
        return f"{word!r} is no command of headstart; {VERB_ADVICE[plain]} {commands}"
    if word not in (".", "..") and expand_home(word).exists():
        command = shlex.join(["headstart", "train", word])
        return f"{word!r} is no command of headstart; did you mean train? Then type {command} {commands}"
    near = SYNONYMS.get(plain) or next(iter(difflib.get_close_matches(plain, VERBS, n=1, cutoff=0.75)), None)
    ask = f"; did you mean {near}?" if near else ""
    return f"{word!r} is no command of headstart{ask} {commands}"


def overview() -> str:
    """What ``headstart --help`` prints."""
    lines = [f"  {name:<10}{text}" for name, text in VERBS.items()]
    return "\n".join(
        [
            "usage: headstart COMMAND ...",
            "",
            "Fine-tune a pretrained image model from timm or torchvision.",
            "",
            *lines,
            "",
            "headstart COMMAND --help shows a command's options; headstart --version the version.",
            "First steps: headstart demo, then headstart train FOLDER (a folder of class folders).",
        ]
    )


def _complain(text: str) -> None:
    shown = "\n".join(cell(line) for line in text.split("\n"))  # a name in it must not steer the terminal
    sys.stderr.write(f"headstart: {shown}\n")


if __name__ == "__main__":
    sys.exit(main())

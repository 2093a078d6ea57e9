"""The transform that a run, now the model of another one, was validated with: it does not come with its folder."""

from __future__ import annotations

from typing import cast

from headstart.errors import ConfigError
from headstart.events import Decision
from headstart.models.answers import find_answers
from headstart.planning.began import FRAMING
from headstart.planning.draft import Draft
from headstart.surgery.function_digest import digest_function
from headstart.surgery.module_copy import InPlace


def check_framing(draft: Draft) -> Draft:
    """The draft, with a decision where its images are validated by another transform than the model's own run had.

    Raises: ConfigError: that run had one, and none is given.
    """
    given, name = draft.own_module, draft.opened.spec
    facts = (
        draft.opened.bundle if given is None else find_answers(given.module if isinstance(given, InPlace) else given)
    )
    known = cast("str | None", (facts or {}).get(FRAMING))
    if known is None:
        return draft
    function = draft.own.transforms.val
    if function is None:
        raise ConfigError(
            f"model: {name}: the run was validated with a transform of your own, which no folder or command holds; "
            'give it in Python: hs.train(config, transform={"val": g}); to go on without it, one that changes nothing: '
            'transform={"val": lambda pixels: pixels}'
        )
    if (digest := digest_function(function)) == known:
        return draft
    why = f"as given, not that of {name}: the SHA-256 of its code is {digest[:12]}, was {known[:12]}"
    return draft.decide(Decision("validation", "by another transform of your own", why))

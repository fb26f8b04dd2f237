"""Whether a model's chat template knows tools, and in which form its model calls them. Found out by letting the
template write a call and reading that back; never by the model's name."""

from runtime.domain.call_forms import FORMS, CallForm
from runtime.domain.calling import Called, CallParser
from runtime.domain.tools import arguments_of
from runtime.errors import InvalidArgument
from runtime.model.delta import Render
from runtime.model.probed import (
    ARGUMENTS,
    ASKED,
    CALL,
    DESCRIPTION,
    NAME,
    RESULT,
    TOOL,
    assistant,
    called,
    result,
    user,
)

_SAID = "Qx7WhatIsSaid"
_NO_TOOLS = "its chat template does not render tools"


class Tooling:
    """`form` is None when `why_not` says why the model is given no tools. `declared` is the form's name where somebody
    knows better, or `none`."""

    def __init__(self, render: Render, declared: str = "auto") -> None:
        self._render = render
        self.form: CallForm | None = None
        self.why_not: str | None = "it is declared to call none"
        if declared != "none":
            self.why_not = self._probe(declared)

    def _probe(self, declared: str) -> str | None:
        """Sets the form, or says why there is none."""
        try:
            if DESCRIPTION not in self._render([user(ASKED)], (TOOL,)):
                return _NO_TOOLS
            if declared != "auto":
                self.form = FORMS[declared]
                return None
            _, _, said = self._render([user(ASKED), called(CALL), result()], (TOOL,)).rpartition(ASKED)
            _, _, plain = self._render([user(ASKED), assistant(_SAID)], (TOOL,)).rpartition(ASKED)
        except InvalidArgument as error:
            return f"{_NO_TOOLS}: {error.message.removeprefix('messages: ')}"
        if NAME not in said or RESULT not in said:
            return "its chat template does not render calls and their results"
        self.form = next((form for form in FORMS.values() if _reads(form, said, plain.partition(_SAID)[0])), None)
        return None if self.form else "its chat template writes calls in no form that is known"


def _reads(form: CallForm, said: str, before: str) -> bool:
    """Whether the form finds the call that was rendered. One without a marker looks for it at an answer's beginning,
    which comes after `before`."""
    if form.begins is None:
        if not said.startswith(before):
            return False
        said = said[len(before) :]
    parser = CallParser(form.parse, frozenset({NAME}))
    calls = [each for each in (*parser.push(said), *parser.finish()) if isinstance(each, Called)]
    return len(calls) == 1 and (calls[0].name, arguments_of(calls[0].arguments)) == (NAME, ARGUMENTS)

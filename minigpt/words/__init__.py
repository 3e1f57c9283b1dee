"""The texts of the interface: a file for each language, and the choice between them.

The browser chooses the language of the page's `LABELS`. The language of `MESSAGES`, which the server and the terminal
write, follows the visitor's browser on the page and the locale on the terminal.
"""

import os
from string import Formatter

from minigpt.words import english, french

COLUMNS = 80  # width of the lines that a training writes, whatever the width of the terminal
LABELS = {"en": english.LABELS, "fr": french.LABELS}
MESSAGES = {"en": english.MESSAGES, "fr": french.MESSAGES}


class _FrenchFormatter(Formatter):
    """Formats numbers in French: a decimal comma, no-break spaces between thousands and before the per cent sign."""

    def format_field(self, value: object, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        is_number = isinstance(value, (int, float)) and format_spec
        return text.translate({ord(","): "\u00a0", ord("."): ",", ord("%"): "\u202f%"}) if is_number else text


_FORMATTERS = {"en": Formatter(), "fr": _FrenchFormatter()}


def locale_language() -> str:
    """Return `fr` if the locale for messages is French, else `en`; LANGUAGE overrides the locale, as in gettext."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    if locale.partition(".")[0] not in ("C", "POSIX"):  # they mean English, as in gettext
        locale = os.environ.get("LANGUAGE") or locale
    return "fr" if locale.lower().startswith("fr") else "en"


def message(name: str, *values: object, language: str | None = None) -> str:
    """Return one of `MESSAGES` with its values inserted.

    Args:
        name: The message's name.
        *values: The values of its replacement fields.
        language: `en` or `fr`; None for the language of the locale.
    """
    language = language or locale_language()
    return _FORMATTERS[language].format(MESSAGES[language][name], *values)

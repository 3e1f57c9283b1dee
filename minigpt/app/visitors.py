"""Visitors of the page: messages in the language of their browser, and whether they are on this machine."""

import ipaddress

import gradio as gr

from minigpt.words import message


class Problem(Exception):
    """An error to show to the visitor, by its name in `MESSAGES`."""

    def __init__(self, name: str, *values: object):
        super().__init__(name)
        self.name, self.values = name, values

    def message(self, request: gr.Request | None) -> str:
        """Return the message in the visitor's language."""
        return "⚠ " + say(request, self.name, *self.values)


def language_of(request: gr.Request | None) -> str:
    """Return `fr` if the visitor's browser prefers French, else `en`."""
    languages = (request.headers.get("accept-language", "") if request and request.headers else "").lower()
    return "fr" if languages.startswith("fr") else "en"


def say(request: gr.Request | None, name: str, *values: object) -> str:
    """Return one of `MESSAGES` in the visitor's language."""
    return message(name, *values, language=language_of(request))


def is_loopback(host: str | None) -> bool:
    """Return whether only this machine can reach a host: a name or an address."""
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

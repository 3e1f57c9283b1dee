"""The server of the page."""

import errno
import socket
from pathlib import Path

import gradio as gr
import torch

from minigpt.app.page import MAX_CONCURRENT, build
from minigpt.app.store import ModelStore
from minigpt.app.texts import MAX_MB
from minigpt.app.train_tab import I18N
from minigpt.app.training import Trainings
from minigpt.app.visitors import is_loopback
from minigpt.errors import MiniGPTError

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
# Outside the part of the page to which Gradio applies `CSS`.
HEAD = "<style>@media (max-width: 640px) {.gradio-container > .app {padding: 12px !important}}</style>"


def serve(
    store: ModelStore, host: str, port: int, auth: tuple[str, str] | None = None, allow_training: bool = False
) -> gr.Blocks:
    """Serve the page on an address, in background threads.

    Args:
        store: The models that it offers.
        host: The address.
        port: The port.
        auth: The name and the password that visitors must give.
        allow_training: Whether visitors may train where other machines can reach the page. On an address of this
            machine alone, they always may.

    Raises:
        MiniGPTError: The address cannot be used.
    """
    host = host.removeprefix("[").removesuffix("]")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family = addresses[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except (OSError, OverflowError, UnicodeError) as error:
        raise _not_served(host, port, error) from error
    if store.device == "cpu":
        torch.set_num_threads(1)  # concurrent visitors are then served faster than one after the other on all cores
    local = all(is_loopback(str(address[4][0])) for address in addresses)
    page = build(store, Trainings(allowed=allow_training or local, anywhere=allow_training))
    page.queue(max_size=8 * MAX_CONCURRENT)
    system = ["system-ui", "sans-serif"]  # so that no font is downloaded
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port, auth=auth, share=False, quiet=True,
            prevent_thread_lock=True, i18n=I18N, css=CSS, head=HEAD,
            theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
            footer_links=["api"], max_file_size=MAX_MB * 2**20, max_threads=2 * MAX_CONCURRENT, ssr_mode=False,
        )  # fmt: skip
    except OSError as error:  # Gradio needs the port on 127.0.0.1 too
        raise _not_served(host, port, error) from error
    return page


def _not_served(host: str, port: int, error: Exception) -> MiniGPTError:
    reason = str(getattr(error, "strerror", None) or error).rstrip(".")
    number = getattr(error, "errno", None)
    taken = number in (None, errno.EADDRINUSE, errno.EACCES) and not isinstance(error, UnicodeError)
    way_out = "Pass a different --port" if taken else "Pass an address of this machine as --host"
    return MiniGPTError(f"The page cannot be served on port {port} of {host}: {reason}. {way_out}.")

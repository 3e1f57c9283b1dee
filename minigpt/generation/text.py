"""From a prompt to text: a model and its tokenizer together."""

from collections.abc import Iterator

import torch
from torch import nn

from minigpt.data.tokenizers import CharTokenizer
from minigpt.errors import MiniGPTError
from minigpt.generation.engine import generate_ids
from minigpt.generation.sampling import check_controls
from minigpt.models import device_of
from minigpt.seeds import derive_seed


class LanguageModel:
    """A network that continues text.

    Args:
        model: `(B, T)` ids to `(B, T, V)` logits.
        tokenizer: Text to ids and back.
    """

    def __init__(self, model: nn.Module, tokenizer: CharTokenizer):
        self.model = model
        self.tokenizer = tokenizer

    def prepare(self, prompt: str, unknown: str = "error") -> str:
        """The prompt as the model will see it: cleaned as the training text was, unknown characters dropped if asked.

        Raises:
            MiniGPTError: The prompt holds characters that the model has never seen.
        """
        return self.tokenizer.decode(self.tokenizer.encode(self.tokenizer.clean(prompt), unknown))

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        sample: int = 0,
        stop: str | None = None,
        unknown: str = "error",
    ) -> Iterator[str]:
        """Continue `prompt`, yielding the new text piece by piece as it is drawn.

        Args:
            prompt: The text to continue. An empty one is continued as a new line would be.
            max_new_tokens: How many tokens to draw.
            temperature: Below 1 the likely becomes likelier, above 1 the rare less rare; 0 is greedy.
            top_k: Draw among the k likeliest tokens only; None for all.
            top_p: Draw among the likeliest tokens that together reach this probability; None for all.
            min_p: Draw among tokens at least this share as likely as the likeliest; None for all.
            repetition_penalty: Above 1, what was written becomes less likely to come again; None for no change.
            seed: The same seed gives the same text, whatever else the process draws; without one the draws come
                from torch's global generator.
            sample: Which of the texts of a seed to draw; each has a stream of its own.
            stop: End before this text would be complete; it is not part of the output.
            unknown: `error` or `skip`: what to do with characters of the prompt that the model has never seen.

        Raises:
            MiniGPTError: A control is outside its range, or the prompt holds unknown characters.
        """
        check_controls(temperature, top_k, top_p, min_p, repetition_penalty)
        if max_new_tokens < 0:
            raise MiniGPTError(f"max_new_tokens is {max_new_tokens}. Give a whole number of 0 or more.")
        if stop == "":
            raise MiniGPTError("The stop string is empty. Give it some text, or leave it out.")
        device = device_of(self.model)
        generator = None if seed is None else torch.Generator(device).manual_seed(derive_seed(seed, "sample", sample))
        ids = self.tokenizer.encode(self.prepare(prompt, unknown)) or [self._opening_id()]
        drawn = generate_ids(
            self.model, torch.tensor([ids], device=device), max_new_tokens, temperature, top_k, top_p, min_p,
            repetition_penalty, generator,
        )  # fmt: skip
        pieces = (self.tokenizer.decode(next_id[0]) for next_id in drawn)
        return pieces if stop is None else until(pieces, stop)

    def _opening_id(self) -> int:
        """What stands before an empty prompt: a line break, or the first id of a text that has none."""
        return (self.tokenizer.encode("\n", unknown="skip") or [0])[0]

    def generate(self, prompt: str, max_new_tokens: int = 100, unknown: str = "error", **controls) -> str:
        """The prompt, cleaned as the training text was, and its continuation; arguments as in `stream`.

        Raises:
            MiniGPTError: A control is outside its range, or the prompt holds unknown characters.
        """
        prompt = self.prepare(prompt, unknown)
        return prompt + "".join(self.stream(prompt, max_new_tokens, **controls))


def until(pieces: Iterator[str], stop: str) -> Iterator[str]:
    """Hand `pieces` on up to the text `stop`, holding back what may turn out to be its beginning."""
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        keep = next(n for n in range(min(len(stop) - 1, len(held)), -1, -1) if held.endswith(stop[:n]))
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def generate(
    model: nn.Module,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    **controls,
) -> str:
    """The article's function: continue `prompt` with any model and its tokenizer; arguments as in `stream`."""
    return LanguageModel(model, tokenizer).generate(
        prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, **controls
    )

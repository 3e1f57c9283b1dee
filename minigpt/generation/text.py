"""From a prompt to text: a model and its tokenizer together."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minigpt.data.tokenizers import Decoder, Tokenizer
from minigpt.errors import MiniGPTError, check_number
from minigpt.generation.engine import sample_ids
from minigpt.generation.sampling import SamplingParams
from minigpt.models import device_of
from minigpt.seeds import derive_seed


class LanguageModel:
    """A network that continues text.

    Args:
        model: A network: any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits. It sees the last
            `block_size` ids where it has such an attribute, else all of them.
        tokenizer: Text to ids and back.
        run_dir: The run folder that it was loaded from.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, run_dir: Path | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.run_dir = run_dir

    def __repr__(self) -> str:
        eight_bits = (buffer for buffer in self.model.buffers() if buffer.dtype == torch.int8)  # quantised weights
        n = sum(weight.numel() for weight in (*self.model.parameters(), *eight_bits))
        block_size = getattr(self.model, "block_size", None)
        block = "" if block_size is None else f", block {block_size:,}"
        return f"LanguageModel({type(self.model).__name__}, {n:,} parameters, {self.tokenizer.contents}{block})"

    def clean_prompt(self, prompt: str, unknown: str = "error") -> str:
        """The prompt as the model will see it: cleaned as the training text was, unknown characters dropped if asked.

        Raises:
            MiniGPTError: The prompt holds characters that the model has never seen.
        """
        return self.tokenizer.decode(self.tokenizer.encode(self.tokenizer.clean(prompt), unknown))

    def stream(self, prompt: str, max_new_tokens: int = 100, sample: int = 0, **sampling: Any) -> Iterator[str]:
        """Continue `prompt`, yielding the new text piece by piece as it is drawn; arguments as in `stream_batch`.

        Args:
            prompt: The text to continue.
            max_new_tokens: How many tokens to draw.
            sample: Which of the texts of a seed to draw; each has a stream of its own.
            **sampling: temperature, top_k, top_p, min_p, repetition_penalty, seed, stop and unknown.

        Raises:
            MiniGPTError: A sampling parameter is outside its range, or the prompt holds unknown characters.
        """
        steps = self.stream_batch([prompt], max_new_tokens, first=sample, **sampling)
        return (pieces[0] for pieces in steps if pieces[0])

    def stream_batch(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        first: int = 0,
        stop: str | None = None,
        unknown: str = "error",
    ) -> Iterator[list[str]]:
        """Continue several prompts at once, of any lengths, yielding a list of the new pieces at each step.

        A batch costs little more than one of its texts. A text that has ended goes on with empty pieces.

        Args:
            prompts: The texts to continue. An empty one is continued as a new line would be.
            max_new_tokens: How many tokens to draw for each.
            temperature: Below 1 the likely becomes likelier, above 1 the rare less rare; 0 is greedy.
            top_k: Draw among the k likeliest tokens only; None for all.
            top_p: Draw among the likeliest tokens that together reach this probability; None for all.
            min_p: Draw among tokens at least this share as likely as the likeliest; None for all.
            repetition_penalty: Above 1, what was written becomes less likely to come again; None for no change.
            seed: The same seed gives the same texts, whatever else the process draws; without one the draws come
                from torch's global generator.
            first: Prompt i is the seed's sample `first` + i.
            stop: End a text before this would be complete; it is not part of the output.
            unknown: `error` or `skip`: what to do with characters of a prompt that the model has never seen.

        Raises:
            MiniGPTError: A sampling parameter is outside its range, or a prompt holds unknown characters.
        """
        params = SamplingParams(temperature, top_k, top_p, min_p, repetition_penalty)
        check_number("max_new_tokens", max_new_tokens, at_least=0, whole=True)
        if stop == "":
            raise MiniGPTError("The stop string is empty. Give it some text, or leave it out.")
        stop = stop and self.tokenizer.clean(stop)
        cleaned = map(self.tokenizer.clean, prompts)
        ids = [self.tokenizer.encode(prompt, unknown) or [self._opening_id()] for prompt in cleaned]
        generators = seed if seed is None else [self._generator(seed, first + n) for n in range(len(prompts))]
        drawn = sample_ids(self.model, ids, max_new_tokens, params, generators)
        return self._pieces(drawn, [StopFilter(stop, Decoder(self.tokenizer.tokens)) for _ in prompts])

    def _pieces(self, drawn: Generator[torch.Tensor, None, None], texts: list["StopFilter"]) -> Iterator[list[str]]:
        for ids in drawn:
            yield [text.add(i) for text, i in zip(texts, ids.tolist(), strict=True)]
            if all(text.ended for text in texts):
                drawn.close()
                return
        yield [text.rest() for text in texts]

    def _generator(self, seed: int, sample: int) -> torch.Generator:
        return torch.Generator(device_of(self.model)).manual_seed(derive_seed(seed, "sample", sample))

    def _opening_id(self) -> int:
        """What stands before an empty prompt: a line break, or the first id of a text that has none."""
        return (self.tokenizer.encode("\n", unknown="skip") or [0])[0]

    def generate(self, prompt: str, max_new_tokens: int = 100, unknown: str = "error", **sampling: Any) -> str:
        """The prompt, cleaned as the training text was, and its continuation; arguments as in `stream`.

        Raises:
            MiniGPTError: A sampling parameter is outside its range, or the prompt holds unknown characters.
        """
        new = self.stream(prompt, max_new_tokens, unknown=unknown, **sampling)
        return self.clean_prompt(prompt, unknown) + "".join(new)

    def generate_batch(
        self, prompts: Sequence[str], max_new_tokens: int = 100, unknown: str = "error", **sampling: Any
    ) -> list[str]:
        """Each prompt, cleaned, and its continuation, all at once; arguments as in `stream_batch`.

        Raises:
            MiniGPTError: A sampling parameter is outside its range, or a prompt holds unknown characters.
        """
        steps = self.stream_batch(prompts, max_new_tokens, unknown=unknown, **sampling)
        shown = (self.clean_prompt(prompt, unknown) for prompt in prompts)
        return ["".join(pieces) for pieces in zip(shown, *steps, strict=True)]


class StopFilter:
    """Hands a text on piece by piece, up to the text `stop`, and holds back what may turn out to be its beginning."""

    def __init__(self, stop: str | None, decoder: Decoder):
        self.stop = stop
        self.decoder = decoder
        self.held = ""
        self.ended = False

    def add(self, token: int) -> str:
        """The part of the text up to this token that can be handed on, and was not yet."""
        return "" if self.ended else self._next(self.decoder.add(token))

    def rest(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.ended else self._next(self.decoder.rest()) + self.held * (not self.ended)

    def _next(self, piece: str) -> str:
        if self.stop is None:
            return piece
        self.held += piece
        if self.stop in self.held:
            self.ended = True
            return self.held[: self.held.index(self.stop)]
        longest = min(len(self.stop) - 1, len(self.held))
        keep = next(n for n in range(longest, -1, -1) if self.held.endswith(self.stop[:n]))
        ready, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return ready


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    **sampling: Any,
) -> str:
    """The article's function: continue `prompt` with any network and its tokenizer.

    Args:
        model: A network: any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits. It sees the last
            `block_size` ids where it has such an attribute, else all of them.
        tokenizer: Text to ids and back.
        prompt: The text to continue.
        max_new_tokens: How many tokens to draw.
        temperature: See `LanguageModel.stream_batch`, as for the parameters that follow.
        top_k: The number of candidates kept.
        top_p: The probability mass kept.
        **sampling: min_p, repetition_penalty, seed, stop and unknown.

    Raises:
        MiniGPTError: A parameter is outside its range, the prompt holds unknown characters, or the network returns
            something else than logits.
    """
    return LanguageModel(model, tokenizer).generate(
        prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, **sampling
    )

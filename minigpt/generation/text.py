"""Generation of text: a model together with its tokenizer."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minigpt.data.tokenizer_base import StreamDecoder, Tokenizer
from minigpt.errors import MiniGPTError, check_number
from minigpt.generation.buffer import IdSteps
from minigpt.generation.checks import compiled_step
from minigpt.generation.engine import generate_ids
from minigpt.generation.sampling import SamplingParams
from minigpt.models import device_of
from minigpt.models.gpt import GPT
from minigpt.models.stock import hooked
from minigpt.seeds import derive_seed


class LanguageModel:
    """A network with its tokenizer, which continues text.

    Args:
        model: A network: any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits. It sees the last
            `block_size` ids if it has that attribute, else all of them.
        tokenizer: Converts text to ids and back.
        run_dir: The run folder that the model was loaded from.
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

    def encode_prompt(self, prompt: str, unknown: str = "error") -> list[int]:
        """Return the ids of a prompt, which is first cleaned as the training text was.

        Args:
            prompt: The prompt.
            unknown: `error`, or `skip` to leave out the characters that the model has never seen.

        Raises:
            MiniGPTError: The prompt holds characters that the model has never seen.
        """
        return self.tokenizer.encode(self.tokenizer.clean(prompt), unknown)

    def stream(
        self, prompt: str | list[int], max_new_tokens: int = 100, sample: int = 0, **sampling: Any
    ) -> Iterator[str]:
        """Continue `prompt`, yielding the new text piece by piece as it is drawn; arguments as in `stream_batch`.

        Args:
            prompt: The text to continue, or its ids from `encode_prompt`.
            max_new_tokens: How many tokens to draw.
            sample: The index of the text; each index of a seed gives another text.
            **sampling: temperature, top_k, top_p, min_p, repetition_penalty, seed, stop and unknown.

        Raises:
            MiniGPTError: A sampling parameter is outside its range, or the prompt holds unknown characters.
        """
        steps = self.stream_batch([prompt], max_new_tokens, first=sample, **sampling)
        return (pieces[0] for pieces in steps if pieces[0])

    def stream_batch(
        self,
        prompts: Sequence[str | list[int]],
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
        """Continue several prompts of any lengths at once, yielding a list of the new pieces at each step.

        A batch takes little longer than one text. A text that has ended yields empty pieces until all have ended.

        Args:
            prompts: The texts to continue, or their ids from `encode_prompt`. An empty prompt is continued like the
                beginning of a text, or of a line. The tokenizer's `prefix` is put before each.
            max_new_tokens: How many tokens to draw for each prompt.
            temperature: Below 1 likely tokens become likelier, above 1 rare tokens become less rare; 0 is greedy.
            top_k: Draw from the k likeliest tokens; None for all.
            top_p: Draw from the likeliest tokens that together reach this probability; None for all.
            min_p: Draw from the tokens whose probability is at least this share of the greatest; None for all.
            repetition_penalty: Above 1, tokens that the text already holds become less likely; None for no change.
            seed: The same seed gives the same texts, whatever else the process draws. Without a seed the draws come
                from torch's global generator.
            first: Prompt i gives the text number `first` + i of the seed.
            stop: End a text before this string; the string is not part of the output.
            unknown: `error`, or `skip` to leave out characters of a prompt that the model has never seen.

        Raises:
            MiniGPTError: A sampling parameter is outside its range, or a prompt holds unknown characters.
        """
        kind = getattr(compiled_step(self.model), "params", SamplingParams)  # compiled code has a compiled filter
        params = kind(temperature, top_k, top_p, min_p, repetition_penalty)
        check_number("max_new_tokens", max_new_tokens, at_least=0, whole=True)
        if stop == "":
            raise MiniGPTError("The stop string is empty. Give it some text, or leave it out.")
        stop = stop and self.tokenizer.clean(stop)
        encoded = (self.encode_prompt(each, unknown) if isinstance(each, str) else each for each in prompts)
        ids = [[*self.tokenizer.prefix, *prompt] or [self._opening_id()] for prompt in encoded]
        generators = seed if seed is None else [self._generator(seed, first + n) for n in range(len(prompts))]
        drawn = in_inference_mode(self.model, generate_ids(self.model, ids, max_new_tokens, params, generators))
        return self._pieces(drawn, [StopFilter(stop, StreamDecoder(self.tokenizer.tokens)) for _ in prompts])

    def _pieces(self, drawn: IdSteps, texts: list["StopFilter"]) -> Iterator[list[str]]:
        for ids in drawn:
            yield [text.add(i) for text, i in zip(texts, ids.tolist(), strict=True)]
            if all(text.ended for text in texts):
                drawn.close()
                return
        yield [text.rest() for text in texts]

    def _generator(self, seed: int, sample: int) -> torch.Generator:
        return torch.Generator(device_of(self.model)).manual_seed(derive_seed(seed, "sample", sample))

    def _opening_id(self) -> int:
        """Return the id that replaces an empty prompt: the tokenizer's `bos`, else a line break, else id 0."""
        if self.tokenizer.bos is not None:
            return self.tokenizer.bos
        return (self.tokenizer.encode("\n", unknown="skip") or [0])[0]

    def generate(self, prompt: str, max_new_tokens: int = 100, unknown: str = "error", **sampling: Any) -> str:
        """Return the prompt, cleaned as the training text was, and its continuation; arguments as in `stream`.

        Raises:
            MiniGPTError: A sampling parameter is outside its range, or the prompt holds unknown characters.
        """
        ids = self.encode_prompt(prompt, unknown)
        return self.tokenizer.decode(ids) + "".join(self.stream(ids, max_new_tokens, **sampling))

    def generate_batch(
        self, prompts: Sequence[str], max_new_tokens: int = 100, unknown: str = "error", **sampling: Any
    ) -> list[str]:
        """Return each prompt, cleaned, with its continuation; arguments as in `stream_batch`.

        Raises:
            MiniGPTError: A sampling parameter is outside its range, or a prompt holds unknown characters.
        """
        ids = [self.encode_prompt(prompt, unknown) for prompt in prompts]
        steps = self.stream_batch(ids, max_new_tokens, **sampling)
        return ["".join(pieces) for pieces in zip(map(self.tokenizer.decode, ids), *steps, strict=True)]


def in_inference_mode(model: nn.Module, steps: IdSteps) -> IdSteps:
    """Draw ids in `torch.inference_mode`, which is a tenth faster than `no_grad`, from a GPT without changes.

    Tensors of inference mode can never be used in training, and a hook or another network may keep some of them.
    """
    if type(model) is not GPT or hooked(model):
        yield from steps
        return
    with closing(steps):
        while True:
            with torch.inference_mode():
                ids = next(steps, None)
            if ids is None:
                return
            yield ids


class StopFilter:
    """Ends a stream of text before the string `stop`, and holds back a piece that may be the beginning of `stop`."""

    def __init__(self, stop: str | None, decoder: StreamDecoder):
        self.stop = stop
        self.decoder = decoder
        self.held = ""
        self.ended = False

    def add(self, token: int) -> str:
        """Add a token and return the text that can be passed on now."""
        return "" if self.ended else self._next(self.decoder.add(token))

    def rest(self) -> str:
        """Return the text that is still held back, when no more tokens come."""
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
    """Continue `prompt` with any network and its tokenizer, as the article's function does.

    Args:
        model: A network: any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits. It sees the last
            `block_size` ids if it has that attribute, else all of them.
        tokenizer: Converts text to ids and back.
        prompt: The text to continue.
        max_new_tokens: How many tokens to draw.
        temperature: See `LanguageModel.stream_batch`, as for the parameters that follow.
        top_k: The number of candidates kept.
        top_p: The probability mass kept.
        **sampling: min_p, repetition_penalty, seed, stop and unknown.

    Raises:
        MiniGPTError: A parameter is outside its range, the prompt holds unknown characters, or the network returns
            something other than logits.
    """
    return LanguageModel(model, tokenizer).generate(
        prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, **sampling
    )

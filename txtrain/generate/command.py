"""`txtrain generate`: what a trained model writes, to standard output as it comes."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from txtrain.data.progress import Progress
from txtrain.data.template import Message
from txtrain.devices import find_device
from txtrain.errors import UserError
from txtrain.generate.continuation import Continuation
from txtrain.generate.options import DTYPES, new_sampling, parse
from txtrain.generate.prompts import Prompt, PromptEncoder, conversation, read_prompts
from txtrain.generate.writer import Writer
from txtrain.printable import printable
from txtrain.terminal import Phase
from txtrain.trained import load_trained


def generate(arguments: Sequence[str]) -> None:
    """Does what the command line asks for."""
    options = parse(arguments)
    sampling = new_sampling(options)
    device = find_device(options.device)
    prompts = list(read_prompts(options.file, chat=options.chat, system=options.system)) if options.file else []
    if options.file and not prompts:
        raise UserError(f"--file {options.file} has no prompts: give a line each")
    with Phase("loading the model"):
        trained = load_trained(options.model, device=device, dtype=DTYPES[options.dtype])
    encoder = PromptEncoder(trained, chat=options.chat)
    writer = Writer(
        trained,
        sampling=sampling,
        max_new_tokens=options.max_new_tokens,
        context=options.context,
        beams=options.beams,
        length_penalty=options.length_penalty,
        stop=options.stop,
        seed=options.seed,
    )
    if options.file:
        write_file(writer, encoder, prompts, options.batch_size)
    elif options.prompt is not None:
        prompt = conversation(options.prompt, options.system) if options.chat else options.prompt
        text, rate = speak(writer, encoder, prompt)
        tell(text, rate, writer.why_full(text))
    else:
        converse(writer, encoder, options.system)


def speak(writer: Writer, encoder: PromptEncoder, prompt: Prompt) -> tuple[Continuation, float]:
    """Prints what comes after a prompt while it is written → the text, and its tokens per second.

    Reading the prompt does not count, unless all comes at once, as it does from beam search.
    """
    text = writer.new_text(encoder.encode(prompt), encoder.end_tokens)
    began, first, waiting = time.perf_counter(), None, Phase("reading the prompt")
    with waiting:
        for told in writer.write([text]):
            waiting.stop()
            for _, piece in told:
                print(shown(piece), end="", flush=True)
            first = first or (len(text.tokens), time.perf_counter())
    print(flush=True)
    tokens, since = first if first and first[0] < len(text.tokens) else (0, began)
    return text, (len(text.tokens) - tokens) / max(time.perf_counter() - since, 1e-9)


def shown(piece: str) -> str:
    """A terminal gets nothing that would move its cursor; a file or pipe gets the text as it is."""
    return printable(piece) if sys.stdout.isatty() else piece


def tell(text: Continuation, rate: float, full: str | None) -> None:
    count = len(text.tokens)
    speed = f", {rate:.0f} per second" if count > 1 else ""
    print(f"({count} token{'s' * (count != 1)}{speed}; ended by {full or text.ended})", file=sys.stderr)


def converse(writer: Writer, encoder: PromptEncoder, system: str | None) -> None:
    """Answers what the user types, until the input ends."""
    messages: list[Message] = []
    while (line := ask()) is not None:
        if line.strip():
            said = [{"role": "user", "content": line}] if messages else conversation(line, system)
            messages += said
            text, _ = speak(writer, encoder, messages)
            if full := writer.why_full(text):
                print(f"(ended by {full})", file=sys.stderr)
            messages.append({"role": "assistant", "content": text.text})


def ask() -> str | None:
    """What the user types, None at the end of input."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def write_file(writer: Writer, encoder: PromptEncoder, prompts: Sequence[tuple[str, Prompt]], batch_size: int) -> None:
    """A line of JSON for each prompt, in order; all prompts are checked before the first is continued."""
    texts = []
    for place, prompt in prompts:
        try:
            texts.append((prompt, writer.new_text(encoder.encode(prompt), encoder.end_tokens)))
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    with Progress("generating", len(texts), unit="prompts", shown=not sys.stdout.isatty()) as progress:
        for first in range(0, len(texts), batch_size):
            batch = texts[first : first + batch_size]
            for _ in writer.write([text for _, text in batch], first):
                pass
            for prompt, text in batch:
                print(json.dumps(record(prompt, text), ensure_ascii=False), flush=True)
            progress.advance(len(batch))
    full = [why for _, text in texts if (why := writer.why_full(text))]
    if full:
        print(f"({len(full)} of {len(texts)} ended by {full[0]})", file=sys.stderr)


def record(prompt: Prompt, text: Continuation) -> dict[str, Any]:
    name = "prompt" if isinstance(prompt, str) else "messages"
    return {name: prompt, "text": text.text, "tokens": len(text.tokens), "ended": text.ended}

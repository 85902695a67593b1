"""The command line of `txtrain generate`."""

import math
from argparse import Namespace
from collections.abc import Sequence

import torch

from txtrain.arguments import Parser
from txtrain.errors import UserError
from txtrain.generate.sampling import Sampling

DESCRIPTION = """What a trained model writes after a prompt.

  txtrain generate runs/gpt/RUN "def main("                    the likeliest tokens, one by one
  txtrain generate FOLDER "Once" --temperature 0.8 --top-p 0.9 drawn
  txtrain generate FOLDER --chat                               a conversation; Ctrl-D ends it
  txtrain generate FOLDER --file prompts.jsonl > texts.jsonl   a batch

MODEL is a run directory (its best checkpoint), a checkpoint of it, or a Hugging Face model's folder. Standard output
gets the text alone, or for --file a JSON object per prompt: prompt, text, tokens (how many), ended (end, stop or
length)."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse(arguments: Sequence[str]) -> Namespace:
    """The options, where they go together."""
    options = new_parser().parse_intermixed_args(arguments)  # "prompt" may come after options
    check(options)
    return options


def new_parser() -> Parser:
    parser = Parser(
        prog="txtrain generate",
        usage="txtrain generate MODEL [PROMPT] [options]",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="run, checkpoint or folder")
    add("prompt", metavar="PROMPT", nargs="?", help="the text to continue; with --chat the user's message")
    add("--file", help="prompts instead: a line each, or .jsonl with prompt (or messages, with --chat)")
    add("--batch-size", type=int, default=8, metavar="N", help="prompts of a file that are written together (8)")
    add("--chat", action="store_true", help="the prompt is a message, put into the model's chat template")
    add("--system", metavar="TEXT", help="the system's message of a chat")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="most tokens to write (128)")
    add("--temperature", type=float, metavar="T", help="draw tokens, from logits divided by T; 0 takes the likeliest")
    add("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens")
    add("--top-p", type=float, metavar="P", help="draw among the fewest tokens of probability P together")
    add("--min-p", type=float, metavar="P", help="draw among tokens P times as likely as the likeliest, or more")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="make tokens that are there less likely (1)")
    add("--beams", type=int, default=1, metavar="N", help="beam search with N beams (1: none)")
    add("--length-penalty", type=float, default=1.0, metavar="X", help="of beam search: more is for longer texts (1)")
    add(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this string; may be given several times"
    )
    add("--seed", type=int, default=0, metavar="N", help="another seed draws another text (0)")
    add("--context", type=int, metavar="N", help="most tokens of prompt and text (default: as in training)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights (float32)")
    return parser


def check(options: Namespace) -> None:
    """Refuses what does not go together, before anything is loaded."""
    if options.prompt is not None and options.file:
        raise UserError("a prompt and --file are given: leave out one of them")
    if options.prompt is None and not options.file and not options.chat:
        raise UserError('no prompt is given: type txtrain generate MODEL "prompt", --file FILE or --chat')
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("the prompt is empty: give some text")
    if options.system is not None and not options.chat:
        raise UserError("--system is for chats: add --chat")
    if "" in options.stop:
        raise UserError("--stop is empty, which is in every text: give a string or leave it out")
    for name in ("max_new_tokens", "batch_size", "beams", "context"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give 1 or more")
    if not abs(options.seed) < 2**62:
        raise UserError(f"--seed is {options.seed}: give a number of up to 18 digits")
    if not math.isfinite(options.length_penalty):
        raise UserError(f"--length-penalty is {options.length_penalty}: give a number such as 1")
    drawing = [name for name in ("temperature", "top_k", "top_p", "min_p") if getattr(options, name)]
    if options.beams > 1 and drawing:
        raise UserError(f"--beams draws nothing: leave out --{drawing[0].replace('_', '-')} or --beams")


def new_sampling(options: Namespace) -> Sampling:
    """Drawn if any option says so, at temperature 1 unless another is given."""
    draws = any(value is not None for value in (options.top_k, options.top_p, options.min_p))
    temperature = options.temperature if options.temperature is not None else float(draws)
    if draws and temperature == 0:
        raise UserError("--temperature 0 takes the likeliest token: leave out --top-k, --top-p and --min-p")
    try:
        return Sampling(
            temperature=temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
        )
    except ValueError as error:
        raise UserError(str(error)) from error

"""Trained models in lm-evaluation-harness: `python -m txtrain.interop.harness --model_args path=RUN --tasks ...`.

https://github.com/EleutherAI/lm-evaluation-harness, as the model `txtrain`.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
import torch
from torch import Tensor

from txtrain.data.template import ChatTemplate
from txtrain.devices import find_device
from txtrain.errors import UserError
from txtrain.generate.sampling import Sampling
from txtrain.generate.writer import Writer
from txtrain.model import Decoder
from txtrain.trained import load_trained

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    sys.exit("error: lm-evaluation-harness is not installed: type pip install 'txtrain[harness]'")

Request = tuple[Any, list[int], list[int]]
"""The texts, or None; ids of the context; ids of what is to be scored."""


@register_model("txtrain")
class HarnessModel(TemplateLM):
    """A decoder that scores and continues texts, as the harness's own `hf` does.

    Args:
        path: run, checkpoint or Hugging Face folder.
        device: cpu, cuda, cuda:1 or mps. Default: a GPU if there is one.
        dtype: of the weights: float32, bfloat16 or float16.
        batch_size: texts in a forward pass.
        max_batch_size: most texts in a forward pass.
        max_length: most tokens of context and continuation. Default: the longest sequence in training.
        add_bos_token: whether each text begins with the token that begins a document, as it does in our training. A
            tokenizer that puts one there by itself needs no second one.
    """

    def __init__(
        self,
        *,
        path: str,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool = False,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size} is no number of texts: type --batch_size 8")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"dtype={dtype} is unknown: type dtype=float32, bfloat16 or float16")
        self.trained = load_trained(path, device=find_device(device or "auto"), dtype=getattr(torch, dtype))
        if not isinstance(self.trained.model, Decoder):
            raise UserError(f"{path} predicts no next token: name a decoder")
        self._device = self.trained.device
        self.batch_size = min(int(batch_size), max_batch_size or int(batch_size))
        self.max_length, self.add_bos_token = max_length or self.trained.max_len, add_bos_token
        # A copy, since here the names of special tokens in a text mean these tokens.
        self.core = tokenizers.Tokenizer.from_str(self.trained.tokenizer.core.to_str())

    # Text and ids

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: what begins a document, in our training an end of text."""
        begins = self.trained.tokenizer.named_tokens().get("bos_token")
        found = None if begins is None else self.core.token_to_id(begins)
        return self.eot_token_id if found is None else found

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        ids: list[int] = self.core.encode(string, add_special_tokens=add_special_tokens is not False).ids
        begins = self.add_bos_token and add_special_tokens is not False and ids[:1] != [self.prefix_token_id]
        return [self.prefix_token_id, *ids] if begins else ids

    @property
    def tokenizer_name(self) -> str:
        return str(self.trained.folder).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._template().source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._template().render(chat_history, add_generation_prompt=add_generation_prompt)

    def _template(self) -> ChatTemplate:
        template = ChatTemplate.of_folder(self.trained.folder)
        if template is None:
            raise UserError(f"{self.trained.folder} has no chat template: leave out --apply_chat_template")
        return template

    # Scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token with as much context as fits."""
        windows: list[Request] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (string,) = request.args
            found = get_rolling_token_windows(self.tok_encode(string), self.prefix_token_id, self.max_length, 1)
            own: list[Request] = [(None, *make_disjoint_window(window)) for window in found]
            windows += own
            owners += [number] * len(own)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether all its tokens are the likeliest."""
        found: dict[int, tuple[float, bool]] = {}
        for batch in self._batches([len(context) + len(scored) for _, context, scored in requests]):
            rows = [(context + scored)[-(self.max_length + 1) :] for _, context, scored in (requests[n] for n in batch)]
            tokens = torch.zeros(len(rows), max(map(len, rows)) - 1, dtype=torch.int64)
            for line, row in zip(tokens, rows, strict=True):
                line[: len(row) - 1] = torch.tensor(row[:-1])  # what follows is seen by no token before it
            logits = self.trained.model(tokens.to(self._device))
            for number, row, scores in zip(batch, rows, logits, strict=True):
                texts, _, scored = requests[number]
                scored = scored[-len(row) + 1 :]
                found[number] = score(scores[len(row) - 1 - len(scored) : len(row) - 1], scored)
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, found[number])
        return [found[number] for number in range(len(requests))]

    # Texts

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to any of the strings `until`."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts: dict[int, str] = {}
        for numbers in alike.values():
            options = normalize_gen_kwargs(requests[numbers[0]].args[1])
            room = min(options["max_gen_toks"], self.max_length // 2)  # for a context there is at least as much
            writer = self._writer(options, room)
            contexts = [self.tok_encode(requests[number].args[0])[room - self.max_length :] for number in numbers]
            for batch in self._batches(list(map(len, contexts))):
                written = [writer.new_text(contexts[place] or [self.prefix_token_id]) for place in batch]
                for _ in writer.write(written, first=numbers[batch[0]]):
                    pass
                for place, text in zip(batch, written, strict=True):
                    texts[numbers[place]] = text.text
                    self.cache_hook.add_partial("generate_until", requests[numbers[place]].args, text.text)
        return [texts[number] for number in range(len(requests))]

    def _writer(self, options: dict[str, Any], room: int) -> Writer:
        kinds = {"top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
        drawing = {name: kind(options[name]) for name, kind in kinds.items() if options.get(name)}
        temperature = options.get("temperature", 1.0) if options["do_sample"] else 0.0
        sampling = Sampling(temperature=temperature, **(drawing if temperature else {}))
        stop = [string for string in options["until"] if string]
        return Writer(self.trained, sampling=sampling, max_new_tokens=room, context=self.max_length, stop=stop)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of texts, the longest first, so that those in a batch are about as long."""
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        for first in range(0, len(order), self.batch_size):
            yield order[first : first + self.batch_size]


def score(logits: Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    """logits (T, V) of T tokens → the log-probability of these, and whether each is the likeliest."""
    target = torch.tensor(tokens, device=logits.device)
    chosen = logits.float().log_softmax(-1).gather(1, target[:, None])
    return chosen.sum(dtype=torch.float32).item(), bool((logits.argmax(-1) == target).all())


def main() -> None:
    """The harness's own command, for the model `txtrain`."""
    words = sys.argv[1:]
    if not any(word.startswith(("--config", "-C")) for word in words):  # which may name a device
        words = ["--device", str(find_device("auto")), *words]  # the harness would take cuda:0; the last one counts
    sys.argv = ["lm-eval", "run", "--model", "txtrain", *words]
    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

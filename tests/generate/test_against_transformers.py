"""Greedy, beam search and the changes of logits, against transformers' own with the same weights."""

import pytest
import torch
from transformers.generation import logits_process
from transformers.utils import logging

from tests.generate.models import gpt2, llama, prompts, t5
from tests.model.families import VOCAB
from txtrain.generate.beams import Beams, search
from txtrain.generate.continuation import Continuation
from txtrain.generate.decode import decode
from txtrain.generate.logits import keep_min_p, keep_top_k, keep_top_p, penalize_repetition
from txtrain.generate.reader import new_reader
from txtrain.generate.sampling import Sampling
from txtrain.model import EncoderDecoder

ENDS = frozenset({7, 11, 13, 20, 30, 34, 41})
NEW = 14
MAKERS = {"llama": llama, "gpt2": gpt2, "t5": t5}
START = (0,)  # what T5's decoder begins with


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Tiny vocabularies make transformers warn of its default token numbers."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="module", params=MAKERS)
def pair(request):
    return MAKERS[request.param]()


def theirs(model, prompt, **settings):
    ids = torch.tensor([prompt])
    ends = {"eos_token_id": sorted(ENDS), "pad_token_id": 0}
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **ends, **settings
    )
    tokens = found[0, 1 if model.config.is_encoder_decoder else len(prompt) :].tolist()
    end = next((place for place, token in enumerate(tokens) if token in ENDS), len(tokens))
    return tokens[:end]


def new_text(model, prompt):
    context = START if isinstance(model, EncoderDecoder) else prompt
    return Continuation(prompt, context=context, decode=lambda ids: "", limit=NEW, end_tokens=ENDS)


def ours(model, texts, sampling=None):
    for _ in decode(new_reader(model, room=NEW, start=START), texts, sampling=sampling or Sampling()):
        pass
    return [text.tokens for text in texts]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_takes_the_same_tokens_as_transformers(pair, penalty):
    reference, model = pair
    for prompt in prompts(1, 4, 8):
        (tokens,) = ours(model, [new_text(model, prompt)], Sampling(repetition_penalty=penalty))
        assert tokens == theirs(reference, prompt, repetition_penalty=penalty)


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 3.0, -1.0])
@pytest.mark.parametrize("width", [2, 5])
def test_beam_search_finds_the_same_tokens_as_transformers(pair, width, length_penalty):
    """All prompts are searched as one batch, from which each goes when it is done."""
    reference, model = pair
    settings = {"num_beams": width, "length_penalty": length_penalty, "repetition_penalty": 1.1}
    texts = [new_text(model, prompt) for prompt in prompts(1, 4, 8)]
    beams = [
        Beams(
            width=width,
            limit=NEW,
            ends=lambda tokens: tokens[-1] in ENDS,
            num_ends=len(ENDS),
            length_penalty=length_penalty,
        )
        for _ in texts
    ]
    found = search(new_reader(model, room=NEW, start=START), texts, beams, Sampling(repetition_penalty=1.1))
    for text, tokens in zip(texts, found, strict=True):
        for token in tokens:
            text.add(token)
        assert text.tokens == theirs(reference, text.prompt, **settings)
    if length_penalty < 1:  # others favour long texts
        assert min(len(text.tokens) for text in texts) < NEW


def test_a_batch_of_prompts_of_different_lengths_gives_what_each_gives_alone(pair):
    _, model = pair
    alone = [ours(model, [new_text(model, prompt)])[0] for prompt in prompts(1, 9, 4, 4, 6)]
    assert ours(model, [new_text(model, prompt) for prompt in prompts(1, 9, 4, 4, 6)]) == alone
    assert len({len(tokens) for tokens in alone}) > 1, "texts that leave the batch at different times"


def test_drawn_texts_do_not_depend_on_the_batch(pair):
    _, model = pair

    def drawn(texts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sampling = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.2)
        for _ in decode(new_reader(model, room=NEW, start=START), texts, sampling=sampling, generators=generators):
            pass
        return [text.tokens for text in texts]

    given = prompts(3, 9, 5)
    together = drawn([new_text(model, prompt) for prompt in given], range(3))
    assert together == [drawn([new_text(model, prompt)], [seed])[0] for seed, prompt in enumerate(given)]
    assert together != drawn([new_text(model, prompt) for prompt in given], range(3, 6))


@pytest.fixture(scope="module")
def logits():
    return torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize(
    "change, reference",
    [
        (lambda x: keep_top_k(x, 1), logits_process.TopKLogitsWarper(1)),
        (lambda x: keep_top_k(x, 7), logits_process.TopKLogitsWarper(7)),
        (lambda x: keep_top_k(x, 500), logits_process.TopKLogitsWarper(500)),
        (lambda x: keep_top_p(x, 0.01), logits_process.TopPLogitsWarper(0.01)),
        (lambda x: keep_top_p(x, 0.8), logits_process.TopPLogitsWarper(0.8)),
        (lambda x: keep_top_p(x, 1.0), logits_process.TopPLogitsWarper(1.0)),
        (lambda x: keep_min_p(x, 0.05), logits_process.MinPLogitsWarper(0.05)),
        (lambda x: keep_min_p(x, 1.0), logits_process.MinPLogitsWarper(1.0)),
        (lambda x: keep_top_p(keep_top_k(x, 9), 0.6), lambda ids, x: _after(x, ids, 9, 0.6)),
    ],
)
def test_what_is_kept_is_what_transformers_keeps(logits, change, reference):
    changed = change(logits)
    assert torch.equal(changed, reference(torch.zeros(5, 1, dtype=torch.long), logits))
    assert changed.isfinite().any(1).all()


def _after(logits, ids, k, p):
    return logits_process.TopPLogitsWarper(p)(ids, logits_process.TopKLogitsWarper(k)(ids, logits))


@pytest.mark.parametrize("penalty", [0.7, 1.5])
def test_repetition_is_penalized_as_in_transformers(logits, penalty):
    ids = torch.randint(0, VOCAB, (5, 12), generator=torch.Generator().manual_seed(4))
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    reference = logits_process.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert torch.equal(penalize_repetition(logits, seen, penalty), reference)

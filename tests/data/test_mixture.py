"""Mixtures of each kind of data: rows are those of the sets, one vocabulary, the union of labels, and mistakes."""

import json
import math

import numpy as np
import pytest
import torch

from txtrain.compose import compose
from txtrain.config import check, to_plain
from txtrain.data.loader import StepLoader
from txtrain.errors import UserError

WORDS = ["ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "jon", "kim", "lea"]


def sentences(count, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def texts(folder):
    (folder / "one.txt").write_text("\n".join(sentences(300, 0)))
    write_lines(folder / "two.jsonl", [{"text": text.upper()} for text in sentences(150, 1)])


def chats(folder):
    texts(folder)
    asked = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in sentences(40, 2)
    ]
    write_lines(folder / "chat.jsonl", [{"messages": messages} for messages in asked])


def labelled(folder):
    write_lines(folder / "one.jsonl", [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(sentences(60, 0))])
    rows = [{"text": text * 3, "other": text, "label": "bc"[i % 2]} for i, text in enumerate(sentences(40, 1))]
    write_lines(folder / "two.jsonl", rows)


def tagged(folder):
    for name, count, tags in (("one", 50, "XY"), ("two", 30, "YZ")):
        rows = [text.replace("ada", "augusta ").split() for text in sentences(count, count)]
        tags = {True: tags[0], False: tags[1]}
        rows = [{"tokens": row, "tags": [tags[word == "augusta"] for word in row]} for row in rows]
        write_lines(folder / f"{name}.jsonl", rows)


def pairs(folder):
    write_lines(folder / "one.tsv", [f"{text}\t{text.upper()}" for text in sentences(90, 0)])
    write_lines(folder / "two.tsv", [f"{text}\t{text[::-1].title()}" for text in sentences(60, 1)])


def images(folder):
    from PIL import Image

    for name, labels in (("one", "ab"), ("two", "bc")):
        for number in range(20):
            path = folder / name / labels[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)


def sounds(folder):
    import soundfile

    for name, seconds in (("one", 0.3), ("two", 0.6)):
        rows = ["file,label", *(f"{i}.wav,{'ab'[i % 2]}" for i in range(16))]
        said = ["file,text", *(f"{i}.wav,{'one' if name == 'one' else 'zwei'}" for i in range(16))]
        (folder / name).mkdir()
        write_lines(folder / name / "labels.csv", rows)
        write_lines(folder / name / "texts.csv", said)
        for i in range(16):
            tone = np.sin(2 * math.pi * (300 + 100 * i) * np.arange(int(seconds * 16000)) / 16000)
            soundfile.write(folder / name / f"{i}.wav", 0.5 * tone, 16000)


AUDIO = "data.max_seconds=0.7"
TOKENS = "data.batch_tokens=128"


def two(option, first, second, *shared):
    return [
        *("data=mixture", f"data.sets.one={option}", f"data.sets.one.path={first}"),
        *(f"data.sets.two={option}", f"data.sets.two.path={second}"),
        *("data.weights.one=2", "data.weights.two=1", *shared),
    ]


BPE = "tokenizer.vocab_size=290"
IMAGES = ["task=image_classification", *two("image_folder", "one", "two", "data.image_size=8", "data.num_workers=0")]
SOUND = "task=audio_classification"
KINDS = {
    "text": (texts, [*two("text", "one.txt", "two.jsonl", "data.seq_len=16"), BPE]),
    "documents": (texts, [*two("text", "one.txt", "two.jsonl", "data.seq_len=16", "data.packing=documents"), BPE]),
    "chat": (
        chats,
        [
            *two("text", "one.txt", "two.jsonl", "data.seq_len=64", "data.packing=documents", "data.weights.talk=1"),
            *("data.sets.talk=chat", "data.sets.talk.path=chat.jsonl", "tokenizer=byte"),
        ],
    ),
    "masked": (texts, ["task=masked_lm", *two("text", "one.txt", "two.jsonl", "data.seq_len=16"), "tokenizer=byte"]),
    "masked pairs": (
        texts,
        ["task=masked_pairs", *two("text", "one.txt", "two.jsonl", "data.seq_len=32"), "tokenizer=char"],
    ),
    "labelled": (
        labelled,
        ["task=sequence_classification", *two("labelled", "one.jsonl", "two.jsonl"), "data.sets.two.pair=other", BPE],
    ),
    "tagged": (tagged, ["task=token_classification", *two("tagged", "one.jsonl", "two.jsonl"), "tokenizer=char"]),
    "images": (images, [*IMAGES, "data.sets.two.mixing.mixup=0.5"]),
    "labelled sound": (sounds, [SOUND, *two("audio_folder", "one/labels.csv", "two/labels.csv", AUDIO)]),
    "transcribed sound": (
        sounds,
        ["task=speech_recognition", *two("audio_folder", "one/texts.csv", "two/texts.csv", "data.max_seconds=0.7")],
    ),
    "translations": (pairs, ["task=translation", *two("pairs", "one.tsv", "two.tsv", "data.batch_tokens=128"), BPE]),
    "separate vocabularies": (
        pairs,
        [
            *("task=translation", *two("pairs", "one.tsv", "two.tsv", TOKENS, "data.vocabulary=separate")),
            *("embedding.shared=false", "embedding.tied=false", BPE),
        ],
    ),
}


def build(*overrides):
    """The data of a command line, not prepared."""
    from hydra.utils import instantiate

    config = to_plain(compose(overrides).config)
    check(config)
    tokenizer = instantiate(config["tokenizer"], _convert_="all")
    return instantiate(config["data"], _convert_="all")(tokenizer=tokenizer, seed=config["seed"])


@pytest.fixture(scope="module", params=KINDS)
def mixture(request, tmp_path_factory):
    """A prepared mixture of each kind."""
    folder = tmp_path_factory.mktemp("mixture")
    make, overrides = KINDS[request.param]
    make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        data = build(*overrides)
        data.named = data.fingerprint()
        data.prepare()
        yield data


def test_each_row_is_the_sample_that_its_set_has(mixture):
    """In training, whatever it is batched with, but for what fills it up; in any pass."""
    samples = mixture.samples("train")
    order = mixture.order(samples, seed=0)
    loader = StepLoader(samples, order=order, micro=mixture.micro(1), accumulation=mixture.accumulation(1))
    for epoch in (0, 2):
        loader.set_epoch(epoch)
        for batch, _ in zip(loader, range(3), strict=False):
            for row, number in enumerate(batch["index"].tolist()):
                if number < 0:
                    continue
                which, passes, own = (int(part) for part in samples.numbers.split(number))
                alone = samples.sets[which].batch(np.array([own]), passes)
                for name, tensor in alone.items():
                    if name in ("index", "num_tokens") or name not in batch:
                        continue
                    mine = batch[name][row][tuple(slice(size) for size in tensor.shape[1:])]
                    assert torch.equal(mine, tensor[0][tuple(slice(size) for size in mine.shape)]), name


def test_sets_are_told_with_their_shares(mixture):
    told = mixture.planned(mixture.steps_in_epoch)
    assert list(told) == [f"set {name}" for name in mixture.parts]
    sizes = mixture._lengths()
    for name, share, size in zip(mixture.parts, mixture.shares().values(), sizes, strict=True):
        assert share == pytest.approx((0.5, 0.25)[name != "one"] if len(sizes) == 3 else (2 / 3, 1 / 3)[name != "one"])
        assert f"{share * sum(sizes) / size:.3g} passes" in told[f"set {name}"]
        assert told[f"set {name}"].endswith(mixture.parts[name].description())
    assert mixture.fingerprint() == mixture.named


def test_origins_name_the_set(mixture):
    samples = mixture.samples("train")
    for which, name in enumerate(samples.names):
        number = int(samples.numbers.of(which, 3, np.array([1]))[0])
        assert mixture.locate(number) == (name, 1)
        assert mixture.origin(number) == mixture.parts[name].origin(1)


def test_validation_is_of_each_set_by_itself(mixture):
    mixture.trainer = type(
        "Trainer",
        (),
        {"world_size": 1, "global_rank": 0, "strategy": type("S", (), {"root_device": torch.device("cpu")})},
    )
    for loader, part in zip(mixture.val_dataloader(), mixture.parts.values(), strict=True):
        samples, seen = part.samples("validation"), []
        for batch in loader:
            seen += [i for i in batch["index"].tolist() if i >= 0]
        assert sorted(seen) == list(range(len(samples)))


def test_labels_are_those_of_all_sets(mixture):
    """Also where a set has only some, and then each number means the same in both."""
    labels = {"labelled text": ["a", "b", "c"], "labelled images": ["a", "b", "c"], "tagged text": ["X", "Y", "Z"]}
    if mixture.content in labels:
        assert mixture.labels == mixture.parts["two"].labels == labels[mixture.content]
        found = {}
        for name, part in mixture.parts.items():
            samples = part.samples("train")
            targets = samples.batch(np.arange(len(samples)))["targets"]
            found[name] = set(targets[targets >= 0].tolist())
        assert found == {"one": {0, 1}, "two": {1, 2}}
        assert mixture.sizes()["num_labels"] == 3


def test_one_tokenizer_has_learned_from_all(mixture):
    if not mixture.tokenized:
        return
    vocabularies = {part.tokenizer.core.to_str() for part in mixture.parts.values()}
    assert len(vocabularies) == 1
    for text in ("bob sees", "BOB SEES") if mixture.content == "text" else ():
        assert mixture.tokenizer.decode(mixture.tokenizer.encode(text)) == text
    if mixture.content == "transcribed sound":
        assert set("onezwei") <= mixture.tokenizer.core.get_vocab().keys()


def test_the_cache_serves_the_same_mixture_and_other_weights_learn_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    texts(tmp_path)
    overrides = [*two("text", "one.txt", "two.jsonl", "data.seq_len=16"), BPE]
    first, again, other = build(*overrides), build(*overrides), build(*overrides, "data.weights.one=0")
    first.prepare()
    entries = {path for path in (tmp_path / "cache").iterdir() if path.is_dir()}
    again.prepare()
    assert {path for path in (tmp_path / "cache").iterdir() if path.is_dir()} == entries
    assert again.tokenizer.core.to_str() == first.tokenizer.core.to_str()
    other.prepare()
    assert other.tokenizer.core.to_str() != first.tokenizer.core.to_str()
    assert other.fingerprint() != first.fingerprint() == again.fingerprint()
    assert len(other.samples("train")) == len(other.parts["two"].samples("train"))
    assert other.parts["one"].validation_bytes == (tmp_path / "one.txt").stat().st_size  # all of it
    validated = len(other.parts["one"].samples("validation"))
    assert other.planned(10)["set one"] == f"weight 0: {validated} samples, for validation only"


def test_without_weights_each_sample_comes_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    texts(tmp_path)
    weighted = two("text", "one.txt", "two.jsonl", "data.seq_len=16", "tokenizer=byte")
    data = build(*(word for word in weighted if not word.startswith("data.weights")))
    data.prepare()
    assert [text.split("; ")[0].split(", ")[1] for text in data.planned(data.steps_in_epoch).values()] == [
        "1 passes"
    ] * 2


RECIPE = """\
# @package _global_
defaults:
  - /data@data.sets.one: text
  - /data@data.sets.two: text
  - override /data: mixture # overrides come last

data:
  seq_len: 16 # of both
  sets:
    one:
      path: one.txt
    two:
      path: two.jsonl
  weights: {one: 0.7, two: 0.3}
"""


def test_a_recipe_says_the_same_as_a_command_line(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(RECIPE)
    recipe = ["--config-dir", str(tmp_path), "experiment=mine"]
    typed = [*two("text", "one.txt", "two.jsonl"), "data.seq_len=32", "data.weights.one=0.9", "data.weights.two=0.3"]
    composed = compose([*recipe, "data.seq_len=32", "data.weights.one=0.9"])
    assert (
        composed.config.data
        == compose([word for word in typed if word not in ("data.weights.one=2", "data.weights.two=1")]).config.data
    )
    assert composed.overrides == ["experiment=mine", "data.seq_len=32", "data.weights.one=0.9"]
    with pytest.raises(UserError, match=r"type \+data\.packing=VALUE to set it for all its sets"):
        compose([*recipe, "data.packing=documents"])
    assert compose([*recipe, "+data.packing=documents"]).config.data.sets.two.packing == "documents"
    with pytest.raises(UserError, match=r"data\.sets\.one is a set of the experiment"):
        compose([*recipe, "data.sets.one=stdlib"])


TWO = two("text", "one.txt", "two.jsonl", "data.seq_len=16")
MISTAKES = {
    "data.weights.one=-1": "data.weights.one is -1: give 0 or more, such as data.weights.one=1",
    "data.weights.one=0 data.weights.two=0": "data.weights are all 0",
    "data.weights={one:1}": "data.weights has none for two: type data.weights.two=1, or 0 to validate only",
    "data.weights.tow=1": "data.weights.tow is of no set: did you mean data.weights.two?",
    "data.weights.one=many": "data.weights must be",
    "data.sets.two=txet": "data.sets.two=txet does not exist (did you mean data.sets.two=text?)",
    "data.sets.two.pth=x": "data.sets.two.pth",
    "data.sets.my.books=text": "the name of a set has no dots",
    "data.sets.two=mixture": "data.sets.two=mixture: a set is no mixture itself",
    "data.sets.2nd=stdlib data.weights.2nd=1": "data.sets.2nd=stdlib: names of sets are letters, digits",
    "data.sets.two.batch_size=4": "data.sets.two.batch_size=4 is for the whole mixture: type data.batch_size=VALUE",
    "data.sets.two.seq_len=8": "data.sets.two.seq_len=8 and data.seq_len contradict each other",
    "data.packing=nested": "data.sets.one.packing must be one of concat, documents",
    "data.sets.two.packing=documents": "data.sets.one.packing is concat and data.sets.two.packing is documents",
    "data.sq_len=8": "data.sq_len is no key of this config: did you mean data.seq_len?",
    "data.sets.three=functions data.weights.three=1": "data.sets.three is labelled text",
    "data.sets.three=chat data.sets.three.path=c data.weights.three=1": "data.sets.one.packing is concat and data.sets",
    "data.sets.two.path=nowhere.txt": "data.sets.two.path=nowhere.txt",
    "data.sets.two.path=???": "data.sets.two.path is needed",
    "data=text data.path=one.txt": "data.sets.one=text is for a mixture of data sets: type data=mixture too",
    "tokenizer.vocab_size=100000": "tokenizer.vocab_size=100000 is more than the training text allows",
    "task=masked_lm data.masking.rate=2": "data.masking.rate=2 is not between 0 and 1",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_line(mistake, tmp_path, monkeypatch):
    from hydra.errors import InstantiationException

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    texts(tmp_path)
    words = mistake.split()
    keys = {word.partition("=")[0] for word in words}
    if words[0].startswith("data.weights={"):
        keys |= {"data.weights.one", "data.weights.two"}
    kept = [word for word in TWO if word.partition("=")[0] not in keys]
    with pytest.raises((UserError, InstantiationException)) as caught:
        build(*kept, *words).prepare()
    error = caught.value if isinstance(caught.value, UserError) else caught.value.__cause__
    assert isinstance(error, UserError)
    assert MISTAKES[mistake] in str(error)
    assert "\n" not in str(error)

"""Overrides that messages tell to type: each is typed here, and works."""

import re
from pathlib import Path

import pytest

from txtrain.cli import main

TEXT = Path(__file__).parent / "golden" / "text.txt"
SHARED = ["logger=none", "trainer.accelerator=cpu", "trainer.max_steps=2"]
TINY = ["model.dim=32", "model.num_layers=2", "model.num_heads=4"]
BASES = {
    "text": [*TINY, "data=text", "data.path=text.txt", "tokenizer=byte", "data.seq_len=32"],
    "masked": [*TINY, "task=masked_lm", "data=text", "data.path=text.txt", "tokenizer=byte", "data.seq_len=32"],
    "labels": [*TINY, "task=sequence_classification", "data=labelled", "data.path=data.csv", "tokenizer=byte"],
    "images": [*TINY, "task=image_classification", "data=digits"],
    "trained": ["data=text", "data.path=text.txt", "init_from=run"],
    "learned": ["task=sequence_classification", "data=labelled", "data.path=data.csv", "init_from=positions"],
}
MISTAKES = {
    "text": """
        norm=preee; lora.rnk=8; lora.rank=eight; lora.rank=-1; lora.rank=2 lora.alpha=0; lora.rank=2 lora.dropout=1.0
        lora.rank=2 lora.targets=[]; lora.rank=2 lora.targets=q_prj; lora.base_dtype=bfloat16
        lora.rank=2 lora.b_lr_ratio=0
        lora.rank=2 lora.merge_every=-1; lora.rank=2 lora.merge_every=2 lora.variant=dora; lora.rank=2 lora.layers=0-9
        lora.rank=2 lora.layers=x; lora.rank=2 lora.rank_pattern={q_prj:4}; lora.rank=2 lora.alpha_pattern={q_proj:0}
        lora.rank=99 lora.init=pissa; model.dim=36 model.num_heads=8; model.num_heads=5; model.num_kv_heads=3
        model.dim=0
        model.dropout=1.0; model.drop_path=-0.5; encoding=xpos encoding.theta=-1; encoding.fraction=0
        encoding.fraction=2
        encoding.scaling=yarn; encoding.factor=2; encoding.scaling=linear encoding.factor=0.5
        encoding.scaling=yarn encoding.factor=2 encoding.original_len=16 encoding.band=[4,1]
        encoding=learned encoding.max_len=16; encoding=learned encoding.offset=-1
        encoding=alibi encoding.max_exponent=0
        encoding=fire encoding.width=0; encoding=fire encoding.c=0; encoding=fire encoding.threshold=-1
        encoding=t5 encoding.num_buckets=0; encoding=t5 encoding.max_distance=1; encoding=xpos encoding.scale_base=0
        encoding=xpos encoding.gamma=0; encoding=sinusoidal model.dim=33 model.num_heads=1
        encoding=sinusoidal encoding.base=0
        attention.soft_cap=0; attention.qk_norm=head attention.qk_norm_eps=0; attention.window=0; norm.bias=true
        norm.layer=layernorm norm.unit_offset=true; norm.eps=0; embedding.norm=true embedding.norm_eps=0
        head.soft_cap=0; head=class_token; head=labels; embedding=patches; embedding=convolutions; head.bias=7
        loss.label_smoothing=1.0; loss.z_loss=-1; checkpointing=every_n checkpointing.n=0
        checkpointing=selective checkpointing.save=[nothing]; optimizer.lr=-1; optimizer.betas=[2,0.9]
        optimizer=sgd optimizer.nesterov=true optimizer.momentum=0.0; optimizer=sgd optimizer.momentum=2.0
        optimizer=muon strategy=deepspeed_zero2; schedule.warmup=-1; schedule.warmup=1.5; schedule.end=2
        schedule=wsd schedule.warmup=0.9 schedule.decay=0.5; save.every=never; save.every=0; save.keep=0
        ema.decay=1.0
        ema.decay=0.9 trainer.precision=bf16-true; samples.length=-1; samples.temperature=-1; samples.temperature=1e-9
        samples.top_k=0; trainer.max_steps=-1; trainer.val_check_interval=0; trainer.val_check_interval=0.5
        trainer.log_every_n_steps=0; trainer.accelerator=quantum; trainer.accelerator=gpu; trainer.devices=0
        trainer.devices=1000; trainer.num_nodes=2; trainer.precision=bf17; seed=-1; seed=x; compile=7; on_spike=never
        data.seq_len=100000; data.batch_size=0; data.micro_batch_size=0; data.num_workers=-1
        data.validation_fraction=2.0
        data.packing=odd; tokenizer=bpe tokenizer.vocab_size=100; tokenizer=bpe tokenizer.vocab_size=100000
        model.vocab_size=100; optimizer=adamww; +optimizer.momentum=0.1; model.num_decoder_layers=2
        save.best=perplexity trainer.limit_val_batches=0; callbacks=early_stopping trainer.limit_val_batches=0
        embedding.shared=false; trainer.gradient_clip_val=-1; trainer.max_time=soon; trainer.max_time=600
    """,
    "masked": """
        data.masking.rate=2.0; data.masking.unit=letter; data.masking.masked=0.9 data.masking.random=0.9
        encoding=xpos
        data=chat data.path=text.txt
    """,
    "labels": """
        data.validation_fraction=0; head=default; head.dropout=1.0
        head=distilled; head=token_mean
    """,
    "images": """
        data.fold=9; data.augment.rotate=999; data.augment.flip=2.0; data.augment.shift=1.0; data.augment.crop=[2,1]
        data.augment.magnitude=99; data.mixing.mixup=-1; data.image_size=0; data.channels=9; embedding.patch_size=99
        encoding=xpos; encoding.scaling=linear; embedding=default
        embedding.distillation_token=true embedding.class_token=false
    """,
    "trained": "lora.rank=2 lora.base_dtype=nf4 lora.init=pissa; data.seq_len=100000",
    "learned": "data.seq_len=64",
}
# What these get is about a key that is misspelt, with no value that could be typed.
OF_A_KEY = ["lora.rnk=8", "+optimizer.momentum=0.1"]
CASES = [
    (base, mistake.strip())
    for base, mistakes in MISTAKES.items()
    for mistake in re.split(r";|\n", mistakes)
    if mistake.strip()
]
OVERRIDE = re.compile(r"(?<![\w.=/+])(\+?[a-z_][\w./]*)=(\{[^}]*\}|\[[^\]]*\]|[^\s,;:()?]+)")


def advised(error: str) -> list[list[str]]:
    """The overrides that a message tells to type: its alternatives, each of one or more."""
    told = error.partition(": ")[2]  # after "error: " the message; after its colon what to do
    do = told.rpartition(": ")[2] if ": " in told else told
    if meant := re.search(r"did you mean (\S+=\S+)\?", told):
        do = meant[1]
    alternatives = re.split(r",? or (?!fewer|less|more|null)", re.sub(r"\((?![a-z.]+=)[^)]*\)", "", do))
    found = [[f"{key}={value}" for key, value in OVERRIDE.findall(text)] for text in alternatives]
    return [overrides for overrides in found if overrides and not any(_is_placeholder(item) for item in overrides)]


def _is_placeholder(override: str) -> bool:
    return bool(re.fullmatch(r"[A-Z]+(/[A-Z]+)*", override.partition("=")[2]))


def name(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "text.txt").write_bytes(TEXT.read_bytes())
    rows = "".join(f"word {number} of a text,{'ab'[number % 2]}\n" for number in range(60))
    (folder / "data.csv").write_text("text,label\n" + rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(["train", *SHARED, *BASES["text"], "samples.length=0", "run_dir=run"]) == 0
        positions = ["encoding=learned", "samples.length=0", "run_dir=positions"]
        assert main(["train", *SHARED, *BASES["masked"], *positions]) == 0
        yield folder


@pytest.mark.parametrize("base, mistake", CASES)
def test_what_a_message_tells_to_type_works(base, mistake, folder, capsys):
    typed = [*SHARED, *BASES[base], *mistake.split(), "dry_run=true"]
    assert main(["train", *typed]) == 1
    [error] = capsys.readouterr().err.splitlines()
    assert error.count(": ") > 0
    alternatives = advised(error)
    if left_out := re.search(r"leave (\S+) out", error):
        alternatives.append([])
    assert alternatives or mistake in OF_A_KEY, error
    for overrides in alternatives:
        names = {name(override) for override in overrides}
        names |= {name(override) for override in typed if f"{name(override)} is no key" in error}
        if left_out and (not overrides or "and leave" in error):
            names.add(left_out[1] if left_out[1] != "it" else re.findall(r"[a-z_]+(?:\.[a-z_]+)*", error)[1])
        kept = [override for override in typed if name(override) not in names]
        assert main(["train", *kept, *overrides]) == 0, (error, overrides, capsys.readouterr().err)

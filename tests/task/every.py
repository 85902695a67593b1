"""Each task on small data, for what is to hold of all of them."""

import torch

from tests.task.examples import TEXT, new_task, write_labelled, write_pairs, write_sounds, write_tagged

SIZES = ["model.dim=24", "model.num_layers=2", "model.num_heads=2"]
FEW = "data.validation_fraction=0.4"
WORDS = ["tokenizer.vocab_size=300", "data.seq_len=24", "data.batch_size=8"]
MASKED = ["data=text", f"data.path={TEXT}", *WORDS]
SOUND = ["data=audio_folder", "data.features.num_mels=12", "data.max_seconds=1", "data.batch_size=8", FEW]
TASKS = {
    "masked_lm": MASKED,
    "masked_pairs": MASKED,
    "sequence_classification": ["data=labelled", "data.path=rows.jsonl", *WORDS, FEW],
    "token_classification": ["data=tagged", "data.path=tags.jsonl", *WORDS, FEW],
    "translation": [
        "data=pairs",
        "data.path=pairs.tsv",
        "tokenizer=char",
        "data.seq_len=40",
        "data.batch_tokens=200",
        FEW,
    ],
    "image_classification": ["data.batch_size=64", "embedding.patch_size=2"],
    "audio_classification": [*SOUND, "data.path=sounds"],
    "speech_recognition": [*SOUND, "data.path=sounds/said.jsonl"],
}
TASKS = {task: [f"task={task}", *words] for task, words in TASKS.items()}


def write_all(folder):
    """What the tasks read, in a folder where they are to be."""
    write_labelled(folder / "rows.jsonl", rows=60)
    write_tagged(folder / "tags.jsonl", rows=40)
    write_pairs(folder / "pairs.tsv")
    write_sounds(folder / "sounds")
    return folder


def build(task, *overrides):
    """The data and a task with its model."""
    return new_task(*SIZES, *TASKS[task], *overrides)


def learns_by_heart(module, batch, *, steps):
    """Whether the loss on a batch falls, once it is seen that every weight that trains has a part in it."""
    trained = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-3), []
    for _ in range(steps):
        objective, _ = module.losses(batch)
        optimizer.zero_grad()
        objective.backward()
        for name, parameter in module.model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} receives no gradient"
                assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        optimizer.step()
        losses.append(objective.item())
    return losses[-1] < losses[0]

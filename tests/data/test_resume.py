"""A run that goes on from a checkpoint sees the samples that the whole run saw, through Lightning's own loops."""

import warnings

import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from txtrain.data.text import TextFiles
from txtrain.data.tokenizer import Byte

STEPS = 11  # of 4 an epoch, the last of each a short one


class Recorder(LightningModule):
    """Writes down which samples each optimizer step was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[int]] = {}
        self.epochs: dict[int, int] = {}

    def training_step(self, batch, batch_idx):
        index = batch["index"]
        self.seen.setdefault(self.global_step, []).extend(index[index >= 0].tolist())
        self.epochs[self.global_step] = self.current_epoch
        return self.weight.sum() * batch["step_tokens"]

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, folder, *, micro, workers=0, checkpoint=None, **options):
    seed_everything(0, verbose=False)
    data = TextFiles(
        path=str(tmp_path / "text.txt"),
        tokenizer=Byte(),
        seq_len=8,
        batch_size=6,
        micro_batch_size=micro,
        num_workers=workers,
        seed=5,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare()
    assert len(data.samples("train")) == 21
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"max_steps": STEPS, "max_epochs": -1} | options
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        accumulate_grad_batches=data.accumulation(1),
        default_root_dir=tmp_path,
        **options,
    )
    module = Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        trainer.fit(module, data, ckpt_path=checkpoint)
    return module


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("0123456789" * 18 + "01234")  # 20 whole windows and a short one to train on
    return tmp_path


VALIDATING = {"check_val_every_n_epoch": None, "val_check_interval": 2}


@pytest.mark.parametrize(
    "micro, later, workers, options",
    [(6, 6, 0, {}), (3, 3, 2, {}), (2, 3, 0, {}), (4, 1, 0, {}), (6, 6, 0, VALIDATING), (3, 1, 0, VALIDATING)],
)
def test_every_checkpoint_continues_the_run(text, micro, later, workers, options):
    whole = fit(text, text / "whole", micro=micro, **options)
    assert sorted(whole.seen) == list(range(STEPS))
    assert list(whole.epochs.values()) == [0] * 4 + [1] * 4 + [2] * 3
    for epoch in (0, 1):
        samples = [i for step in range(4 * epoch, 4 * epoch + 4) for i in whole.seen[step]]
        assert sorted(samples) == list(range(21))
    assert whole.seen[0] != whole.seen[4]
    for done in range(1, STEPS) if not workers else (2, 4):
        checkpoint = text / "whole" / f"step={done}.ckpt"
        rest = fit(text, text / f"rest{done}", micro=later, workers=workers, checkpoint=checkpoint, **options)
        assert rest.seen == {step: whole.seen[step] for step in range(done, STEPS)}, done
        assert rest.epochs == {step: whole.epochs[step] for step in range(done, STEPS)}, done

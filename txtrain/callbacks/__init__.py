"""What happens beside the training steps: numbers, progress, samples, checkpoints, summaries. One small file each."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import Callback

from txtrain.callbacks.activations import Activations
from txtrain.callbacks.averaging import Averaging
from txtrain.callbacks.budget import Budget
from txtrain.callbacks.checkpoints import Checkpoints
from txtrain.callbacks.clock import Clock
from txtrain.callbacks.final_validation import FinalValidation
from txtrain.callbacks.first_validation import FirstValidation
from txtrain.callbacks.merging import Merging
from txtrain.callbacks.metrics import Metrics
from txtrain.callbacks.progress import Progress
from txtrain.callbacks.random_state import RandomState
from txtrain.callbacks.samples import Samples
from txtrain.callbacks.spikes import Spikes
from txtrain.callbacks.stopping import Stopping
from txtrain.callbacks.summary import Summary
from txtrain.durations import max_seconds
from txtrain.saving import Save


def new_callbacks(
    *,
    run_dir: Path,
    config: Mapping[str, Any],
    save: Save,
    samples: Callable[..., Samples],
    averaging: Averaging | None = None,
    others: Iterable[Callback] = (),
) -> tuple[list[Callback], Summary]:
    """All callbacks of a run in the order in which their hooks must run, and the one whose `finish` ends it.

    Args:
        run_dir: where they write.
        config: the run's, plain.
        save: when to write checkpoints.
        samples: makes the callback that writes some.
        averaging: of the weights.
        others: those of the `callbacks` group.
    """
    averaging = averaging or Averaging()
    clock = Clock()
    metrics = Metrics(run_dir=run_dir, clock=clock)
    texts = samples(clock=clock)
    spikes = Spikes(run_dir=run_dir, on_spike=config["on_spike"])
    summary = Summary(run_dir=run_dir, config=config, metrics=metrics, samples=texts, spikes=spikes)
    budget = Budget(seconds=max_seconds(config.get("trainer", {}).get("max_time")))
    progress = Progress(metrics=metrics, clock=clock, budget=budget)
    checkpoints = Checkpoints(run_dir=run_dir, save=save, clock=clock)
    # The generators' state is taken before anything else may draw; a checkpoint holds the outcome of all others.
    callbacks = [
        RandomState(),
        spikes,  # what it ends, those after it end
        Merging(),  # what is validated and saved after a step is the merged model
        budget,  # what it ends, those after it validate, log and save
        *others,  # likewise
        FinalValidation(),
        metrics,
        summary,
        Activations(config=config),
        progress,
        texts,
        averaging,  # until here what validated wrote samples; what is saved from here on trains
        Stopping(run_dir=run_dir, checkpoints=checkpoints),
        checkpoints,
        FirstValidation(wanted=config.get("init_from") is not None),  # when all others are ready
    ]
    return callbacks, summary

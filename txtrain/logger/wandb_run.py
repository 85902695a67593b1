"""Weights & Biases."""

import logging
import netrc
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from txtrain.errors import UserError
from txtrain.logger.endure import Enduring, Row, later, with_nan
from txtrain.logger.segments import cut_back
from txtrain.logger.surroundings import agent_run, overruled, stated_mode

log = logging.getLogger(__name__)

FINISH_TIMEOUT = 120  # seconds to send the rest at the end; what is left stays in the run directory
COLUMNS = ["step", "prompt", "text"]  # of the table of samples


class WandB(Enduring, WandbLogger):
    """Lightning's W&B logger that never asks, never hangs, and changes no environment variable.

    Args:
        run_dir: holds the files, and the run's id in `wandb_id` until a checkpoint holds it.
        settings: arguments of `wandb.init`.
        config: the run's, whole.
        timeout: seconds to wait for the server.
    """

    label = "W&B"
    _experiment: Any

    def __init__(self, *, run_dir: Path, settings: dict[str, Any], config: dict[str, Any], timeout: int) -> None:
        try:
            super().__init__(save_dir=run_dir, project=settings["project"], name=settings["name"])
        except ModuleNotFoundError as error:
            raise UserError("logger=wandb needs the package wandb: pip install wandb, or logger=none") from error
        self.run_dir, self.settings, self.run_config, self.timeout = run_dir, settings, config, timeout
        self.mode, self.reason = choose_mode(os.environ)
        self.run_id: str | None = None
        self.logged = 0  # the last step of earlier sessions

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run once it has begun; Lightning asks for it before the checkpoint is read."""
        return self._experiment or DummyExperiment()

    @rank_zero_only
    def begin(self, *, step: int = 0, rows: Sequence[Row] = (), run_id: str | None = None) -> str | None:
        """Goes on after `step` with the run of this id, and logs those of the rows that it lacks.

        The row of the last step before a crash is often lost: W&B writes it when the next one begins. A run that had
        another logger before lacks all.
        """
        self.begun = True
        with self.enduring():
            self.run_id = agent_run(os.environ) or run_id or self._id_in_run_dir()
            self.logged = max((cut_back(segment, step) for segment in self._segments()), default=0)
            service = os.environ.get("WANDB_SERVICE")
            self._experiment = self._start()
            self._remember_id()
            if service is None:  # else the processes that this one starts would attach to its W&B
                os.environ.pop("WANDB_SERVICE", None)
            if self.mode == "online":
                self.logged = self._experiment.starting_step - 1
            self._tell_overruled()
            for row in later(rows, self.logged):
                self._experiment.log(with_nan(row), step=row["step"])
        return self.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if not self.begun:
            self.begin()
        with self.enduring():
            self.experiment.log(dict(metrics), step=step)

    def log_samples(self, rows: Sequence[Sequence[Any]]) -> None:
        """A table is fixed once logged, so each has the (step, prompt, text) of all before it."""
        with self.enduring():
            self.log_table("samples", columns=COLUMNS, data=[list(row) for row in rows], step=rows[-1][0])

    def reopen(self, *, step: int, rows: Sequence[Row]) -> None:
        """Goes on with a run that has ended, as what it is: its name, group, tags and all that was logged stay."""
        self.settings |= {"name": None, "group": None, "tags": None}
        self.begin(step=sys.maxsize, rows=rows)

    def log_pictures(self, pictures: Mapping[str, bytes], *, step: int) -> None:
        """PNG files by name, in a row of their own after this step, since W&B adds nothing to one that is sent."""
        import wandb as client

        from txtrain.plots.canvas import as_array

        with self.enduring():
            images = {f"plots/{name}": client.Image(as_array(content)) for name, content in pictures.items()}
            self.experiment.log(images, step=max(step, self.logged) + 1)

    def finalize(self, status: str) -> None:
        """Lightning calls this after each of its stages; the run goes on until `close`."""

    def describe(self) -> str:
        return f"wandb {self.mode}" + (f" ({self.reason})" if self.reason else "")

    @rank_zero_only
    def close(self, *, exit_code: int) -> None:
        run, self._experiment = self._experiment, None
        if run is None:
            return
        url = run.url if self.mode == "online" else None
        with self.enduring():
            run.finish(exit_code=exit_code)
        if self.mode == "online":
            log.info("W&B: %s", url)
        elif self.mode == "offline":
            # W&B writes elsewhere where it may not write into the run directory.
            folders = [str(segment.parent) for segment in self._segments()] or [str(Path(run.dir).parent)]
            log.info("W&B: logged offline, send it with: wandb sync %s", shlex.join(folders))

    def _segments(self) -> list[Path]:
        """The run's files that are not sent yet, oldest first; the names begin with the time."""
        return sorted((self.run_dir / "wandb").glob(f"offline-run-*/run-{self.run_id}.wandb"))

    def _start(self) -> Any:
        import wandb as client

        client.setup(client.Settings(silent=True))
        if self.mode == "online":
            try:
                _connect(os.environ, self.timeout)
                return self._init("online")
            except (OSError, client.Error) as error:
                self.mode, self.reason = "offline", (str(error).splitlines() or [type(error).__name__])[0]
                log.warning("W&B cannot be used online (%s): logging offline.", self.reason)
                client.teardown()  # the failed run would keep its id
        return self._init(self.mode)

    def _init(self, mode: str) -> Any:
        import wandb as client

        settings: Any = {
            "mode": mode,
            "init_timeout": self.timeout,
            "finish_timeout": FINISH_TIMEOUT,
            "console": "off",
            "silent": True,
            "reinit": "create_new",
            "disable_git": True,
            "x_save_requirements": False,
            "x_disable_stats": not torch.cuda.is_available(),
        }
        run: Any = {**self.settings, "dir": self.run_dir, "id": self.run_id, "resume": "allow"}
        if agent_run(os.environ):  # W&B takes these from the agent, and says so of each that it is given
            run |= {"id": None, "project": None, "entity": None}
        return client.init(**run, config=self.run_config, settings=client.Settings(**settings))

    def _id_in_run_dir(self) -> str:
        """That of a new run is what the environment says, but for a job of a sweep, which is one of many."""
        path = self.run_dir / "wandb_id"
        if path.exists():
            return path.read_text().strip()
        stated = None if self.settings["group"] else os.environ.get("WANDB_RUN_ID")
        return stated or secrets.token_hex(4)

    def _remember_id(self) -> None:
        """W&B's answer counts, whatever was asked for."""
        self.run_id = str(self._experiment.id or self.run_id)
        path = self.run_dir / "wandb_id"
        if self.mode != "disabled" and (not path.exists() or path.read_text().strip() != self.run_id):
            path.write_text(self.run_id)

    def _tell_overruled(self) -> None:
        if self.mode == "disabled":
            return
        run, settings = self._experiment, self.settings
        used = {name: settings.get(name) for name in ("project", "entity", "tags", "name")}
        if agent_run(os.environ):  # the agent's own
            used |= {"project": None, "entity": None}
        used |= {
            "run_id": run.id,
            "run_group": settings.get("group"),
            "dir": self.run_dir,
            "init_timeout": self.timeout,
        }
        if found := overruled(os.environ, used):
            log.warning("W&B: overruled of the environment, with what holds instead: %s", ", ".join(found))


def choose_mode(environment: Mapping[str, str]) -> tuple[str, str]:
    """How W&B will run, and why: what WANDB_DISABLED or WANDB_MODE says, else online if there is an API key."""
    if stated := stated_mode(environment):
        return stated
    key = environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE")
    if key or any(map(_netrc_has, _hosts(environment))):
        return "online", ""
    return "offline", "no API key"


def _base_url(environment: Mapping[str, str]) -> str:
    import wandb as client

    return environment.get("WANDB_BASE_URL") or client.Settings().base_url


def _hosts(environment: Mapping[str, str]) -> list[str]:
    """Names under which an API key may be kept: wandb's own server has had two."""
    host = urlsplit(_base_url(environment)).netloc
    return [host] if environment.get("WANDB_BASE_URL") else [host, "api.wandb.ai"]


def _netrc_has(host: str) -> bool:
    files = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            if netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _connect(environment: Mapping[str, str], timeout: float) -> None:
    """Raises an OSError soon where wandb would try for long; through a proxy only wandb can tell."""
    if not any(environment.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")):
        url = urlsplit(_base_url(environment))
        address = (url.hostname or "", url.port or (80 if url.scheme == "http" else 443))
        socket.create_connection(address, timeout=timeout).close()

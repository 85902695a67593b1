"""Where a run reports to: the terminal and train.log, and the loggers of the `logger` group."""

import logging
import netrc
import os
import secrets
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.text import Text

from txtrain.errors import UserError

log = logging.getLogger(__name__)

console = Console(highlight=False, soft_wrap=True)
LOG_ONLY = {"log_only": True}  # extra= of a record for train.log alone
LIBRARIES = ("lightning", "lightning.pytorch", "lightning.fabric", "DeepSpeed", "datasets", "wandb", "py.warnings")
FINISH_TIMEOUT = 120  # seconds to send the rest at the end; what is left stays in the run directory


def setup_logging(run_dir: Path | None, rank: int) -> None:
    """Lines of txtrain go to the terminal and, in a run directory, to train.log; those of libraries to train.log only.

    Only rank 0 speaks; other ranks tell errors. Call it again when the run directory exists or a library was loaded.
    """
    ours = logging.getLogger("txtrain")
    file: logging.Handler = logging.NullHandler()
    if run_dir is not None and rank == 0:
        file = logging.FileHandler(run_dir / "train.log", encoding="utf-8", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    _replace_handlers(ours, [_Terminal(), file])
    ours.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logging.captureWarnings(True)
    for name in LIBRARIES:
        _replace_handlers(logging.getLogger(name), [file])
    logging.getLogger("wandb").setLevel(logging.WARNING)  # it has a log of its own


def _replace_handlers(logger: logging.Logger, handlers: list[logging.Handler]) -> None:
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        if isinstance(old, logging.FileHandler):
            old.close()
    for new in handlers:
        logger.addHandler(new)
    logger.propagate = False


class _Terminal(logging.Handler):
    """Prints through the console that also draws the progress bar, so that lines appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "log_only", False):
            style = "yellow" if record.levelno >= logging.WARNING else ""
            console.print(Text(record.getMessage(), style=style))


def none(
    *, run_dir: Path, name: str, config: Mapping[str, Any], group: str | None = None, job: str | None = None
) -> list[Logger]:
    """No logger: metrics.jsonl and train.log are written all the same."""
    return []


def tensorboard(
    *, run_dir: Path, name: str, config: Mapping[str, Any], group: str | None = None, job: str | None = None
) -> list[Logger]:
    """TensorBoard files in `tensorboard/` of the run directory."""
    logger = TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard", default_hp_metric=False)
    logger.log_hyperparams(dict(config))
    return [logger]


def wandb(
    *,
    run_dir: Path,
    name: str,
    config: Mapping[str, Any],
    group: str | None = None,
    job: str | None = None,
    project: str = "txtrain",
    entity: str | None = None,
    tags: list[str] | None = None,
    timeout: int = 20,
) -> list[Logger]:
    """Weights & Biases.

    Args:
        run_dir, name, config: of the run.
        group: the sweep that the run belongs to.
        job: what sets it apart there.
        project, entity: where the run goes in W&B.
        tags: free words to find the run by.
        timeout: seconds to wait for the server before logging into files.
    """
    name = job or f"{name} {run_dir.name}"
    settings = {"project": project, "entity": entity, "tags": tags, "group": group, "name": name}
    return [WandB(run_dir=run_dir, settings=settings, config=dict(config), timeout=timeout)]


def close_loggers(loggers: list[Logger], *, failed: bool = False) -> None:
    """Ends what the loggers have open, and says how to send what is still here."""
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.close(exit_code=int(failed))
        else:
            logger.finalize("failed" if failed else "success")


class WandB(WandbLogger):
    """Lightning's W&B logger that never asks, never hangs, and changes no environment variable.

    Args:
        run_dir: holds the files, and the run's id in `wandb_id`, so that a resumed run goes on as the same one.
        settings: arguments of `wandb.init`.
        config: the run's, whole.
        timeout: seconds to wait for the server.
    """

    _experiment: Any

    def __init__(self, *, run_dir: Path, settings: dict[str, Any], config: dict[str, Any], timeout: int) -> None:
        try:
            super().__init__(save_dir=run_dir, project=settings["project"], name=settings["name"])
        except ModuleNotFoundError as error:
            raise UserError("logger=wandb needs the package wandb: pip install wandb, or logger=none") from error
        self.run_dir, self.settings, self.run_config, self.timeout = run_dir, settings, config, timeout
        self.mode, self.reason = choose_mode(os.environ)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, started at its first use."""
        if self._experiment is None:
            service = os.environ.get("WANDB_SERVICE")
            self._experiment = self._start()
            if service is None:  # else the processes that this one starts would attach to its W&B
                os.environ.pop("WANDB_SERVICE", None)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

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
        run.finish(exit_code=exit_code)
        if self.mode == "online":
            log.info("W&B: %s", url)
        elif self.mode == "offline":
            segments = sorted((self.run_dir / "wandb").glob("offline-run-*"))
            log.info("W&B: logged offline, send it with: wandb sync %s", shlex.join(str(path) for path in segments))

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
        run: Any = {**self.settings, "dir": self.run_dir, "id": self._id_in_run_dir(), "resume": "allow"}
        return client.init(**run, config=self.run_config, settings=client.Settings(**settings))

    def _id_in_run_dir(self) -> str:
        path = self.run_dir / "wandb_id"
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        return path.read_text().strip()


def choose_mode(environment: Mapping[str, str]) -> tuple[str, str]:
    """How W&B will run, and why: what WANDB_MODE says, else online if there is an API key."""
    mode = environment.get("WANDB_MODE")
    if mode is not None:
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
        if mode not in ("online", "offline", "disabled"):
            raise UserError(f"WANDB_MODE is {mode}: set it to online, offline or disabled, or unset it")
        return mode, "WANDB_MODE"
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

"""The records of a step in its run folder and on the console: config.yaml, metrics.jsonl, report lines, W&B.

Only rank 0 writes. A resumed run continues the same files: lines of steps beyond the checkpoint, which will be taken
again, are dropped first.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dakd.config import Config, dump_config
from dakd.runtime.console import show
from dakd.runtime.distributed import is_main
from dakd.runtime.files import holds, open_to_append, sync, write_text
from dakd.runtime.kept_config import CONFIG
from dakd.runtime.sealed import listed_in, refuse_unlisted, remove_manifest, seal_yaml, write_listed
from dakd.shipped import extra_remedy

METRICS = "metrics.jsonl"
REPORT_INTERVAL_S = 30.0
CONNECT_TIMEOUT_S = 3.0  # until W&B's server counts as absent
INIT_TIMEOUT_S = 30.0  # until a server that does answer must have opened the run, in the mode auto
_REMEDIES = {
    "online": "run `wandb login`, set WANDB_API_KEY, or set engine.wandb to offline or auto",
    "offline": "set engine.wandb to off",
}


def say(message: str) -> None:
    """One line on rank 0's standard output, at once."""
    if is_main():
        show(message)


def save_config(config: Config, step_folder: Path, is_finished: bool = False) -> None:
    """Keep the resolved configuration with the run (the last accepted one) and with the step that it was used for.

    is_finished: whether the step has written its files, and their manifest, which then lists config.yaml too. Else its
    manifest goes first where config.yaml changes, and the step writes one at its end.
    """
    if not is_main():
        return
    text, own = seal_yaml(dump_config(config)), step_folder / CONFIG
    write_listed(config.run_path / CONFIG, text)
    if is_finished and listed_in(step_folder):
        write_listed(own, text)
    elif not holds(own, text):
        if not is_finished:
            remove_manifest(step_folder)
        write_text(own, text)


def format_duration(seconds: float) -> str:
    """`4h12m`, `3m05s`, `12s`."""
    total = max(0, round(seconds))
    if total >= 3600:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 60}m{total % 60:02d}s" if total >= 60 else f"{total}s"


def format_count(count: float) -> str:
    """`812`, `13.1k`, `1.31M`, `2.5G`, `1.02T`."""
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if float(f"{count:.3g}") >= scale:  # as it will be printed: 999 900 is 1M
            return f"{count / (1e3 if suffix == 'k' else scale):.3g}{suffix}"
    return f"{count:.0f}"


def progress(items: Iterable, total: int, label: str) -> Iterator:
    """Pass the items through: a bar on a terminal, a line every 30 s in a log; silent but on rank 0."""
    if not is_main():
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, leave=False)
    else:
        yield from _log_progress(items, total, label)


def _log_progress(items: Iterable, total: int, label: str) -> Iterator:
    start = last = time.monotonic()
    for count, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last >= REPORT_INTERVAL_S:
            last = now
            done = count + 1
            say(f"{label}  {done}/{total}  eta {format_duration((now - start) / done * (total - done))}")


class RunLog:
    """Reports of a training: a line on the console, a record in metrics.jsonl, W&B where it is on."""

    def __init__(self, folder: Path, label: str, total_steps: int, start_step: int, wandb_mode: str, config: Config):
        self.folder, self.label, self.total_steps = folder, label, total_steps
        self.active = is_main()
        self._start_step, self._start_s = start_step, time.monotonic()
        self._last_report_s = self._start_s
        self._bar = None
        self._wandb = None
        if not self.active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS
        drop_records_after(self._path, start_step)
        self._wandb = _start_wandb(wandb_mode, folder, label, config)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=start_step, desc=label, leave=True, unit="step")

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def is_due(self, step: int, log_every: int) -> bool:
        """After every `log_every` steps, at the last step, and never later than 30 s after the last report."""
        late = time.monotonic() - self._last_report_s >= REPORT_INTERVAL_S
        return step % log_every == 0 or step == self.total_steps or late

    def report(self, step: int, images_seen: int, values: dict[str, float], images_per_s: float) -> None:
        """Record the values of one optimizer step (1-based)."""
        self._last_report_s = time.monotonic()
        if not self.active:
            return
        record = {"step": step, "images_seen": images_seen, **values, "images_per_s": round(images_per_s, 3)}
        with open_to_append(self._path) as stream:
            stream.write(json.dumps(record) + "\n")
        if self._wandb is not None:
            self._wandb.log({f"{self.label}/{name}": value for name, value in record.items()})
        line = self._line(step, images_seen, values, images_per_s)
        if self._bar is not None:
            self._bar.write(line)
        else:
            say(line)

    def _line(self, step: int, images_seen: int, values: dict[str, float], images_per_s: float) -> str:
        elapsed = time.monotonic() - self._start_s
        done = max(1, step - self._start_step)
        eta = format_duration(elapsed / done * (self.total_steps - step))
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        return (
            f"{self.label}  step {step}/{self.total_steps}  images {format_count(images_seen)}  {numbers}  "
            f"{images_per_s:.3g} img/s  eta {eta}"
        )

    def flush(self) -> None:
        """Return when all records are on the disk: a checkpoint never outlives the lines of its steps."""
        if self.active and self._path.exists():
            sync(self._path)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()


def drop_records_after(path: Path, step: float) -> None:
    """Keep the records of steps up to `step`; lines that are none, such as one that a kill cut short, are dropped."""
    if not path.exists():
        return
    lines = _lines(path)
    kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= step]
    if len(kept) != len(lines):
        write_text(path, "".join(line + "\n" for line in kept))


def read_records(path: Path) -> list[dict]:
    """The records of a metrics.jsonl, in order; an unfinished last line is left out.

    ValueError where its training has finished and the file is not as it was then.
    """
    if not path.exists():
        return []
    refuse_unlisted(path)
    return [json.loads(line) for line in _lines(path) if _step_of(line) is not None]


def _lines(path: Path) -> list[str]:
    # Bytes that are not UTF-8, after a disk's fault, make their line one that is left out.
    return path.read_text(errors="replace").splitlines()


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _start_wandb(mode: str, folder: Path, label: str, config: Config) -> Any:
    """A W&B run, or None where the mode is off.

    `auto` is online where a key and the server are there, else offline; without the package it is off. A log must not
    stop a training: in `auto` any failure online is reported in one line, and the run continues offline.
    """
    if mode == "off":
        return None
    try:
        import wandb
    except ImportError:
        if mode != "auto":
            raise RuntimeError(f"wandb is {mode} but the package is not installed; {extra_remedy('train')}") from None
        return None
    if mode != "auto":
        try:
            return _open_wandb_run(mode, folder, label, config)
        except Exception as error:  # wandb's errors have no common base
            raise RuntimeError(f"wandb is {mode}, and W&B says: {_first_line(error)}; {_REMEDIES[mode]}") from error
    try:
        reason = _why_offline()
        if reason is None:
            return _open_wandb_run("online", folder, label, config, init_timeout=INIT_TIMEOUT_S)
    except Exception as error:
        reason = f"W&B says: {_first_line(error)}"
        wandb.teardown()  # what failed would still hold the run's id
    if reason:
        say(f"{label}  wandb offline: {reason}; upload later with: wandb sync {folder}/wandb/offline-run-*")
    return _open_wandb_run("offline", folder, label, config)


def _open_wandb_run(mode: str, folder: Path, label: str, config: Config, **settings: Any) -> Any:
    import wandb

    run_id = folder / "wandb_id"
    if not run_id.exists():
        write_text(run_id, secrets.token_hex(4))
    return wandb.init(
        project="dakd",
        name=f"{config.name}-{label}",
        id=run_id.read_text().strip(),
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, **settings),
    )


def refuse_wandb(mode: str) -> None:
    """RuntimeError where a training that logs to W&B `online` would find no key, or none of its form.

    Nothing is asked over the network.
    """
    if mode != "online":
        return
    try:
        found = "" if _wandb_key_for() else "W&B has no key"
    except Exception as error:  # wandb's errors have no common base
        found = f"W&B says: {_first_line(error)}"
    if found:
        raise RuntimeError(
            f"engine.wandb is online, and {found}; {_REMEDIES['online']}"
        )


def _wandb_key_for() -> str:
    """The URL of the W&B server that there is a key for; "" where there is none."""
    import wandb

    url = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    # The key of WANDB_API_KEY or of the netrc file, as wandb itself finds it; nothing is asked and nothing is sent.
    return url if wandb.login(prompt=False, verify=False) else ""


def _why_offline() -> str | None:
    """Why W&B cannot be used online: "" where there is no key, which needs no word; None where it can."""
    url = _wandb_key_for()
    if not url:
        return ""
    return None if _server_answers(url) else f"{url} does not answer within {CONNECT_TIMEOUT_S:.0f} s"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _server_answers(url: str) -> bool:
    """Whether the server, or the proxy on the way to it, takes a TCP connection.

    wandb itself would try for a minute and a half to find that it does not.
    """
    server = urlsplit(url)
    proxy = None if proxy_bypass(server.hostname) else getproxies().get(server.scheme)
    if proxy:
        server = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (server.hostname, server.port or (443 if server.scheme == "https" else 80))
    try:
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True

"""Models in folders of the Hugging Face hub's form: model.safetensors, config.json and README.md; up and down.

Names and arguments follow huggingface_hub, which is imported only where a hub id is given.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from dakd.card import CARD_FILE, TEACHER_FILE, card_of, count_parameters, is_foreign, without_places, write_card
from dakd.names import written_path
from dakd.runtime.files import write_text
from dakd.runtime.runlog import say
from dakd.runtime.tensor_files import read_metadata, save_weights, stated_hash
from dakd.shipped import extra_remedy
from dakd.weights import STUDENT_FILES

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)
# Weights files of a training's folder, for folders without a model.safetensors.
TRAINED_FILES = (STUDENT_FILES["ema"], TEACHER_FILE)


class HubModel(ABC):
    """The methods of huggingface_hub's ModelHubMixin, for a model with tensors and metadata.

    Only `from_pretrained` with a hub id downloads, and only a push uploads.
    """

    @classmethod
    @abstractmethod
    def _from_file(cls, path: Path, **settings: Any) -> Self:
        """The model of a weights file.  settings: further arguments of `from_pretrained`."""

    @abstractmethod
    def _state_and_metadata(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """The tensors by name, and the metadata that rebuild the net."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **settings: Any,
    ) -> Self:
        """The model of a local folder or file, or of a hub id OWNER/NAME, which is downloaded.

        The options are huggingface_hub's.  settings: those of loading, such as device.
        Raises as `find_weights` does, and ValueError where the file holds another kind of model.
        """
        path = find_weights(
            pretrained_model_name_or_path,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        return cls._from_file(path, **settings)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        licence: str | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push: Any,
    ) -> str | None:
        """Write model.safetensors, config.json and README.md, the model card, to a folder.

        licence: of the weights, for the card.  push_to_hub: upload the folder to repo_id, OWNER/NAME, too, with the
        arguments of `push_to_hub`; the URL of the commit is then returned.
        Raises TypeError for an argument of a push where there is none.
        """
        if push and not push_to_hub:
            raise TypeError(
                f"found {', '.join(push)}; give them with push_to_hub=True alone (the licence is `licence`)"
            )
        state, metadata = self._state_and_metadata()
        num_parameters = count_parameters({name: tuple(tensor.shape) for name, tensor in state.items()})
        folder = save_folder(save_directory, state, metadata, card_of(metadata, num_parameters, licence=licence))
        return push_folder(folder, repo_id or "", **push) if push_to_hub else None

    def push_to_hub(self, repo_id: str, *, licence: str | None = None, **push: Any) -> str:
        """Upload the model to the hub; the URL of the commit.  push: private, token, branch, ... of `push_folder`."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, licence=licence)
            return push_folder(folder, repo_id, **push)


def save_folder(folder: str | Path, state: Mapping[str, Tensor], metadata: dict[str, Any], card: str) -> Path:
    """Writes a model in the hub's form, each file whole or not at all, the weights last; returns the folder.

    state: the net's tensors by name.  metadata: of `save_weights`; paths of this machine are cut to file
    names. model.safetensors alone is enough to load the model. A README.md that dakd did not write is kept.
    Raises ValueError, and writes nothing, for a URL and where the folder has a model that dakd did not write, or one of
    another kind.
    """
    folder = written_path(folder)
    public = without_places(metadata)
    text = json.dumps(public, indent=2) + "\n"
    refuse_other_model(folder / CONFIG_FILE, public.get("kind"), lambda path: json.loads(path.read_bytes()))
    refuse_other_model(folder / WEIGHTS_FILE, public.get("kind"))
    if is_foreign(folder / CARD_FILE):
        say(f"{folder / CARD_FILE} was not written by dakd, and is kept")
    else:
        write_card(folder / CARD_FILE, card)
    write_text(folder / CONFIG_FILE, text)
    save_weights(folder / WEIGHTS_FILE, state, public)
    return folder


def refuse_other_model(path: Path, kind: str | None, read: Callable[[Path], Any] = read_metadata) -> None:
    """ValueError where a file that would be replaced is not dakd's, or of another kind of model.

    read: gives the file's metadata.
    """
    if not path.exists():
        return
    try:
        found = read(path)["kind"]
    except (ValueError, TypeError, KeyError, FileNotFoundError):  # the last for a folder
        raise ValueError(f"{path} was not written by dakd, and is not replaced; give another folder or file") from None
    if found != kind:
        raise ValueError(f"{path} is a model of the kind {found}, not {kind}; give another folder or file")


def find_weights(name_or_path: str | Path, **download: Any) -> Path:
    """The weights file of a local file, a local folder or a hub id `owner/name`; only the last is downloaded.

    download: options of huggingface_hub's hf_hub_download (`from_pretrained` lists them), for a hub id only. Raises
    FileNotFoundError where a local path does not exist, ValueError where a folder or a repository has no weights to
    choose, RuntimeError where huggingface_hub is not installed or the hub cannot be reached.
    """
    # Local paths first: nothing is downloaded while a file or folder of that name is there.
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    # Path("") is the current folder, which an empty name does not mean.
    if path.is_dir() and name_or_path != "":
        return _in_folder(path)
    if not is_hub_id(name_or_path):
        raise FileNotFoundError(
            f"no file or folder at {str(name_or_path)!r}, and not a hub id either; give a .safetensors file, a "
            f"folder with {WEIGHTS_FILE}, or a hub id OWNER/NAME as a string"
        )
    repo_id = str(name_or_path)
    hub = _import_hub(repo_id)
    with _in_plain_words(hub, repo_id, download.get("revision")):
        return Path(hub.hf_hub_download(repo_id=repo_id, filename=WEIGHTS_FILE, library_name="dakd", **download))


def local_weights(path: str | Path) -> Path:
    """The weights file at a path, or that of a local folder; nothing is downloaded."""
    path = Path(path).expanduser()
    return _in_folder(path) if path.is_dir() else path


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload a model of dakd",
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads a folder of `save_folder` to the hub, and creates its repository and branch where there are none.

    Only model.safetensors, config.json and README.md are uploaded. Returns the URL of the commit.
    Raises ValueError where the folder has no weights or the id is none, RuntimeError where the hub refuses it.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS_FILE}; write it with save_pretrained first")
    if not is_hub_id(repo_id):
        raise ValueError(f"{repo_id!r} is not a hub id; expected OWNER/NAME")
    hub = _import_hub(repo_id)
    api = hub.HfApi(token=token, library_name="dakd")
    with _in_plain_words(hub, repo_id, branch):
        api.create_repo(repo_id=repo_id, private=private, exist_ok=True)
        if branch is not None and not branch.startswith("refs/"):
            api.create_branch(repo_id=repo_id, branch=branch, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repo_id,
                repo_type="model",
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                # The folder may hold more, such as a training's checkpoints.
                allow_patterns=list(FILES),
            )
        )


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` has the form OWNER/NAME of a hub id; a Path object or the name of a weights file never has."""
    if isinstance(name, os.PathLike) or name.endswith(".safetensors"):
        return False
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", name, re.ASCII))


def _in_folder(folder: Path) -> Path:
    """model.safetensors of a folder, or the only averaged weights of a training; else ValueError.

    Both may be there where they are the same weights.
    """
    trained = [folder / name for name in TRAINED_FILES if (folder / name).is_file()]
    if (folder / WEIGHTS_FILE).is_file():
        if others := [path.name for path in trained if stated_hash(path) != stated_hash(folder / WEIGHTS_FILE)]:
            raise ValueError(
                f"{folder} has {WEIGHTS_FILE} and other weights in {', '.join(others)}; give the .safetensors file "
                "itself"
            )
        return folder / WEIGHTS_FILE
    if len(trained) == 1:
        return trained[0]
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
    raise ValueError(
        f"{folder} has no {WEIGHTS_FILE} and not exactly one of {', '.join(TRAINED_FILES)}; there is: {there}. "
        "Give the .safetensors file itself"
    )


def _import_hub(repo_id: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise RuntimeError(
            f"{repo_id} is on the Hugging Face hub, which needs huggingface_hub, and it cannot be imported ({error}); "
            f"{extra_remedy('hub')}"
        ) from error
    return huggingface_hub


@contextmanager
def _in_plain_words(hub: Any, repo_id: str, revision: str | None) -> Iterator[None]:
    """Turns an error of the hub into a ValueError (there is no such thing) or a RuntimeError, which name the id."""
    errors = hub.errors
    at = f"{repo_id} at revision {revision}" if revision else repo_id
    try:
        yield
    # In this order, because some of these errors are subclasses of later ones.
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise RuntimeError(
            f"{at} is not in the local cache, and the hub cannot be reached or may not be asked; connect to the "
            "network, or give a local folder"
        ) from error
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise ValueError(
            f"the hub shows no repository {repo_id}; look for a typing error in the id or local path, or give a token "
            "that may use it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo_id} has no revision {revision}; give a branch, tag or commit of it") from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f"{at} has no {WEIGHTS_FILE}, so it is not a dakd model; give another id") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{repo_id} is not a valid hub id ({error}); expected OWNER/NAME") from error
    except Exception as error:  # of the network, of several libraries
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise RuntimeError(
            f"the hub refused {at} or did not answer ({reason:.300}); run it again, or see status.huggingface.co"
        ) from error

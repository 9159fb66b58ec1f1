"""Sources of policies: what the user names, checked before a loader is imported."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from gpc.errors import InputError, suggest
from gpc.registry import names

GROUP = "gpc.policies"
FORMS = {
    "lerobot": "lerobot:FOLDER takes the pretrained_model folder of a LeRobot checkpoint",
    "robomimic": "robomimic:FILE.pth takes a file of robomimic",
    "diffusion_policy": "diffusion_policy:FILE.ckpt takes a file of Diffusion Policy or DP3",
    "beso": "beso:FOLDER takes the folder of a training, with .hydra/config.yaml in it",
    "beso_unconditional": "beso_unconditional:FOLDER takes the folder of a training, with .hydra/config.yaml in it",
}
"""Loaders of files, and what they take."""
CARD = "card.json"  # of a policy in gpc's own format (`gpc.card`, which needs msgspec)
REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>.*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def split_source(source: str) -> tuple[str, str]:
    """Return loader and path; without a loader it is "bundled"."""
    loader, colon, path = source.partition(":")
    return (loader, path) if colon else ("bundled", source)


def bundled_folders() -> dict[str, Path]:
    """Return the folders of the bundled policies by name."""
    folders = Path(str(files("gpc.policies"))) / "bundled"
    return {path.parent.name: path.parent for path in sorted(folders.glob(f"*/{CARD}"))}


def check_source(source: str) -> None:
    """Check by name and files that a source can be a policy.

    Sources of loaders of other packages pass.

    Raises:
        InputError: If its path is missing or has no loader, or it is a name of the hub without its loader or commit. The
            line to type is named.
    """
    loader, path = split_source(source)
    place = Path(path).expanduser()
    if loader == "bundled":
        _check_bundled(path, place)
    elif loader == "lerobot" and not place.exists() and (repository := REPOSITORY.fullmatch(path)):
        if not COMMIT.fullmatch(repository["revision"] or ""):
            raise InputError(f"no folder {path!r}; {_pinned(repository['name'])}")
    elif loader in FORMS and not (place.is_dir() if "FOLDER" in FORMS[loader] else place.is_file()):
        fits = loader_of(place)
        line = f"write {fits}" if fits and fits.startswith(f"{loader}:") else FORMS[loader]
        raise InputError(f"no {'folder' if 'FOLDER' in FORMS[loader] else 'file'} {path!r}; {line}")
    elif loader not in names(GROUP) and (fits := loader_of(Path(source).expanduser())):
        raise InputError(f"{source} has no loader; by its files it is {fits}: write that")


def _check_bundled(path: str, place: Path) -> None:
    fits = None if (place / CARD).is_file() else loader_of(place)
    if path in bundled_folders() or (place.is_dir() and not fits):
        return  # the loader of bundled policies names what a folder lacks
    if fits:
        raise InputError(f"{path} has no loader; by its files it is {fits}: write that")
    if place.exists():
        raise InputError(f"{path} has no loader; write LOADER:{path} with one of {', '.join(names(GROUP))}")
    repository = REPOSITORY.fullmatch(path)
    if repository and not path.startswith("."):
        raise InputError(
            f"no folder {path!r}, and a name of the hub needs loader and commit; {_pinned(repository['name'])}"
        )
    raise InputError(f"no bundled policy and no folder is called {path!r}{suggest(path, list(bundled_folders()))}")


def _pinned(repository: str) -> str:
    """Return the line to type for a checkpoint of the hub."""
    return (
        f"for the hub write lerobot:{repository}@COMMIT, since a name alone may mean other weights tomorrow; `git ls-remote "
        f"https://huggingface.co/{repository} HEAD` prints the commit, 40 digits"
    )


def loader_of(place: Path) -> str | None:
    """Return the source that the files of a path suggest.

    None if they are of no known codebase.
    """
    if place.is_file():
        training = place.parent
        if place.suffix == ".ckpt":
            return f"diffusion_policy:{place}"
        if place.suffix == ".pth" and not (training / ".hydra").is_dir():
            return f"robomimic:{place}"
        place = training
    if any((place / inner / "config.json").is_file() for inner in (".", "pretrained_model")) or any(
        place.glob("checkpoints/*/pretrained_model")
    ):
        return f"lerobot:{place}"
    if saved := sorted(place.glob("checkpoints/*.ckpt")):
        return f"diffusion_policy:{saved[-1]}"
    if saved := sorted(place.glob("models/*.pth"), key=lambda path: (path.stat().st_mtime, path.name)):
        return f"robomimic:{saved[-1]}"
    return f"beso:{place}" if (place / ".hydra/config.yaml").is_file() else None

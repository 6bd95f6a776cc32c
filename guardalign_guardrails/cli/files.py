"""Which files a command takes, and where it may write.

What is skipped here is never checked, so the rules are few: no hidden names, no links to folders, nothing that is
clearly no image. Whatever cannot be read is taken, so that it shows up as a row.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from guardalign_guardrails.cli.console import CommandError, printable

if TYPE_CHECKING:
    from PIL.Image import Image

# Also formats that cannot be opened: an image that was not checked has to show up as one.
_NAMES: Final = """
apng avif avifs bmp dib gif heic heics heif heifs hif ico j2c j2k jfif jif jp2 jpc jpe jpeg jpf jpg jpx jxl mpo pjp
pjpeg png psd svg svgz tga tif tiff webp
"""
SUFFIXES: Final = frozenset(f".{name}" for name in _NAMES.split())
_BMP_HEADERS: Final = (12, 16, 40, 52, 56, 64, 108, 124)
_LONGEST_NAME: Final = 180
_ENDINGS: Final = {"JPEG": "jpg", "PNG": "png", "TIFF": "tiff"}


@dataclass(frozen=True)
class Found:
    """A file to check.

    Attributes:
        path: As given, joined with what lies below a folder.
        place: Where its outputs go below ``--out``, without their suffix: the folder's name and the path below it.
    """

    path: str
    place: PurePath


def find(paths: Iterable[str], *, leave_out: Path | None = None) -> list[Found]:
    """The files that paths stand for: files as they are, folders with all images below them, each in sorted order.

    Args:
        paths: Files and folders.
        leave_out: A folder that is not entered when it lies below one of the others.

    Raises:
        CommandError: A path does not exist, or a folder cannot be listed.
    """
    found = []
    for path in paths:
        try:
            is_folder = stat.S_ISDIR(Path(path).stat().st_mode)
        except (OSError, ValueError) as error:
            raise CommandError(f"{path}: {_why(error)}; give files and folders that exist.") from error
        if is_folder:
            top = PurePath(Path(path).resolve().name)
            found += [
                Found(below, top / PurePath(below).relative_to(PurePath(path))) for below in _images(path, leave_out)
            ]
        else:
            found.append(Found(path, PurePath(PurePath(path).name)))
    return found


def _images(folder: str, leave_out: Path | None) -> Iterator[str]:
    # A stack, not recursion: a sender may nest folders deeper than Python nests calls.
    pending = _listed(folder)
    while pending:
        entry = pending.pop()
        if entry.is_dir(follow_symlinks=False):
            if not (leave_out and leave_out.exists() and leave_out.samefile(entry.path)):
                pending += _listed(entry.path)
        elif _is_regular(entry) and _looks_like_an_image(entry.path):
            yield entry.path


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        # A link to itself.
        return False


def _listed(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, last name first."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise CommandError(f"{folder}: {_why(error)}; make the folder readable or leave it out.") from error
    return sorted(visible, key=lambda entry: entry.name, reverse=True)


def _looks_like_an_image(path: str) -> bool:
    if PurePath(path).suffix.lower() in SUFFIXES:
        return True
    from guardalign_guardrails.images.containers.inspect import sniff

    try:
        with open(path, "rb") as file:  # noqa: PTH123  a Path would drop what the user wrote, such as "./"
            start = file.read(32)
    except OSError:
        return True
    name = sniff(start)
    # Two letters are a weak promise: "BMW.txt" begins like a bitmap.
    return name is not None and (name != "BMP" or int.from_bytes(start[14:18], "little") in _BMP_HEADERS)


class OutputFolder:
    """Writes images below a folder under names of their own, never over an input.

    Args:
        folder: Made if it does not exist.
        inputs: Paths that must not be written to.

    Raises:
        CommandError: The folder cannot be made.
    """

    def __init__(self, folder: Path, inputs: Iterable[str]) -> None:
        self._folder = folder
        self._inputs = {identity for path in inputs if (identity := _identity(path))}
        self._taken: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"--out {folder}: {_why(error)}; give a folder that can be written to.") from error

    def save(self, image: Image, place: PurePath, what: str) -> Path:
        """Write an image as ``PLACE.WHAT.png``, or with a number if that name is taken, and say where.

        Raises:
            CommandError: It cannot be written.
        """
        target = self._free(place, f"{what}.png")
        write_png(image, target)
        return target

    def save_encoded(self, data: bytes, place: PurePath, what: str) -> Path:
        """The same for an encoded image, whose name ends as its format asks.

        Raises:
            CommandError: It cannot be written.
        """
        from guardalign_guardrails.images.containers import sniff

        target = self._free(place, f"{what}.{_ENDINGS.get(sniff(data) or '', 'bin')}")
        _write(data, target)
        return target

    def _free(self, place: PurePath, what: str) -> Path:
        name = place.name
        if len(os.fsencode(name)) > _LONGEST_NAME:
            name = f"{name[:40]}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"
        number = 1
        while True:
            mark = f"~{number}" if number > 1 else ""
            target = self._folder / place.parent / f"{name}{mark}.{what}"
            key = str(target).casefold()
            if key not in self._taken and _identity(str(target)) not in self._inputs:
                self._taken.add(key)
                return target
            number += 1


def write_png(image: Image, target: Path) -> None:
    """Write an image in one step, so that no half of it is ever seen and no link is followed.

    Raises:
        CommandError: It cannot be written.
    """
    from guardalign_guardrails.images import encode_png

    _write(encode_png(image), target)


def _write(data: bytes, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".guardalign-", delete=False) as file:
            try:
                file.write(data)
                file.close()
                # Temporary files are private; outputs are as readable as the user's other files.
                Path(file.name).chmod(0o666 & ~_umask())
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise CommandError(f"{printable(str(target))}: {_why(error)}; choose another place with --out.") from error


def _umask() -> int:
    # It can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()

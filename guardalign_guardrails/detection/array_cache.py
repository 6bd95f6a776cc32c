"""Feature arrays kept on disk between runs.

The cache saves time and nothing else: an entry that cannot be read or written is passed over with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def cached(path: Path | None, rows: int, make: Callable[[], Tensor]) -> Tensor:
    """Features from a file, else made and written to it.

    Args:
        path: The entry's file, whose name must change when the features would; None for no cache.
        rows: How many rows the features have.
        make: Makes them, shape [rows, d], float32, on the CPU.

    Returns:
        Shape [rows, d].
    """
    features = _read(path, rows) if path else None
    if features is None:
        features = make()
        if path:
            _write(path, features)
    return features


def _read(path: Path, count: int) -> Tensor | None:
    try:
        stored = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("Feature cache entry %s is unreadable (%s) and is made again.", path.name, type(error).__name__)
        return None
    if stored.ndim != 2 or stored.shape[0] != count or not np.isfinite(stored).all():
        logger.warning("Feature cache entry %s does not fit and is made again.", path.name)
        return None
    return torch.from_numpy(stored)


def _write(path: Path, features: Tensor) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, features.numpy(), allow_pickle=False)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        logger.warning("The feature cache cannot be written (%s); texts are encoded at each start.", error.strerror)

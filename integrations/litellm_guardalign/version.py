"""Which LiteLLM is here. Importing it to ask takes seconds, and may call the network."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version


@cache
def litellm_version() -> tuple[int, ...]:
    """Its major and minor version.

    Raises:
        importlib.metadata.PackageNotFoundError: It is not installed.
    """
    return tuple(int(number) for number in re.findall(r"\d+", version("litellm"))[:2])

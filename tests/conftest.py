"""What tests of several rooms share: the offline encoder, which takes seconds to load, once per run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before torch is imported: tests run in several processes, and their models are too small for several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from guardalign_guardrails import Guard, Policy

if TYPE_CHECKING:
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM

SCORE_POLICY = "extends: default\nthresholds: {kind: score, flag: 0.35, prefix: null, mask: 0.65}\n"


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cache and profile folders of the test run, so that it neither reads nor writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
            patch.setenv(variable, str(_shared(tmp_path_factory, variable.lower())))
        yield


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for feature caches, so that no test reads or writes the user's."""
    return _shared(tmp_path_factory, "guardalign-cache")


def _shared(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all processes of a test run share, since what is kept there takes long to make."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def offline_guard(cache_dir: Path) -> Guard:
    """A guard with the real offline encoder and raw-score thresholds, which need no reference profile."""
    from guardalign_guardrails.detection.encoders.offline import OfflineEncoder

    # Where a command whose XDG_CACHE_HOME is ``cache_dir`` keeps them as well.
    folder = cache_dir / "guardalign"
    return Guard(Policy.from_yaml(SCORE_POLICY), OfflineEncoder(cache_dir=folder), cache_dir=folder)


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> CalibratedLVLM:
    """A real small language model with calibration, answering greedily; unpacked once into pytest's own cache."""
    from guardalign_guardrails.decoding.chat.settings import GenerationSettings
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM

    unpacked = request.config.cache.mkdir("guardalign-models")  # type: ignore[union-attr]
    settings = GenerationSettings(temperature=0, max_new_tokens=24)
    return CalibratedLVLM.from_pretrained("smollm2", cache_dir=unpacked, settings=settings)

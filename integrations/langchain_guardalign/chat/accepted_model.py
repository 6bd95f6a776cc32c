"""What may stand for a guarded model's chat model: one, what `init_chat_model` gives, or a binding of one.

Bindings (``bind``, ``with_config``, ``with_retry``, ``with_fallbacks``, ``configurable_fields``) are run as they are.
This module looks into them for what a wrapper has to know, and carries what it makes of the model inside back out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import (
    DynamicRunnable,
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)

from guardalign_guardrails.errors import SettingsError


def accepted(value: Any) -> Any:
    """A chat model, or a runnable that does nothing but call one; a name is made into what it names.

    Args:
        value: The model, a binding of it, what `init_chat_model` gave, or the name that it takes.

    Raises:
        SettingsError: It is something else.
    """
    if isinstance(value, str):
        return _named(value)
    if chat_models_in(value):
        return value
    raise SettingsError(
        "A GuardedChatModel wraps a chat model, what init_chat_model gives or takes, or a binding of a chat model "
        f"(bind, with_config, with_retry, with_fallbacks), not {type(value).__name__}; put an ImageGuard in front of "
        "anything else: guard | runnable."
    )


def chat_models_in(runnable: Any) -> list[Any]:
    """The chat models that a runnable calls, first that which is asked first; none if it does anything else.

    A model that is configured per call (`init_chat_model` with ``configurable_fields``) counts as one.
    """
    if isinstance(runnable, BaseChatModel):
        return [runnable]
    if isinstance(runnable, RunnableBindingBase):
        return chat_models_in(runnable.bound)
    if isinstance(runnable, RunnableWithFallbacks):
        first = chat_models_in(runnable.runnable)
        return first and [*first, *(model for other in runnable.fallbacks for model in chat_models_in(other))]
    if isinstance(runnable, DynamicRunnable):
        return chat_models_in(runnable.default)
    return [runnable] if _is_configured_per_call(runnable) else []


def chat_model_in(runnable: Any) -> BaseChatModel | None:
    """The chat model that a runnable asks first; None if it is made anew for each call."""
    models = chat_models_in(runnable)
    return models[0] if models and isinstance(models[0], BaseChatModel) else None


def names_in(
    runnable: Any, arguments: Mapping[str, Any] | None = None, config: RunnableConfig | None = None
) -> list[str | None]:
    """The names of the models that a call may ask, as LangSmith gets them; None for one that does not say.

    Args:
        runnable: A chat model or a binding of one.
        arguments: Of the call.
        config: Of the call.
    """
    given = dict(arguments or {})
    if isinstance(runnable, RunnableBindingBase):
        return names_in(runnable.bound, {**runnable.kwargs, **given}, merge_configs(runnable.config, config))
    if isinstance(runnable, RunnableWithFallbacks):
        return [name for each in runnable.runnables for name in names_in(each, given, config)]
    if isinstance(runnable, DynamicRunnable):
        prepared, own = runnable.prepare(config)
        return names_in(prepared, given, own)
    if isinstance(runnable, BaseChatModel):
        return [runnable._get_ls_params(**given).get("ls_model_name")]  # noqa: SLF001  LangChain's, for wrappers
    if _is_configured_per_call(runnable):
        # Not by making the model: that may need a key and takes time, and the call will do it anyway.
        return [{**runnable._default_config, **runnable._model_params(config)}.get("model")]  # noqa: SLF001
    return [None]


def carried(runnable: Any, make: Callable[[Any], Runnable[Any, Any]]) -> Runnable[Any, Any]:
    """A runnable with what is made of each chat model in the model's place.

    Args:
        runnable: A chat model or a binding of one.
        make: Makes a runnable of a chat model, as ``bind_tools`` and ``with_structured_output`` do.

    Raises:
        TypeError: The runnable makes its chat model anew of configured fields.
    """
    if isinstance(runnable, RunnableBindingBase):
        return runnable.model_copy(update={"bound": carried(runnable.bound, make)})
    if isinstance(runnable, RunnableWithFallbacks):
        fallbacks = [carried(fallback, make) for fallback in runnable.fallbacks]
        return runnable.model_copy(update={"runnable": carried(runnable.runnable, make), "fallbacks": fallbacks})
    if isinstance(runnable, RunnableConfigurableAlternatives):
        others = {
            name: carried(other, make) if isinstance(other, Runnable) else _Later(other, make)
            for name, other in runnable.alternatives.items()
        }
        return runnable.model_copy(update={"default": carried(runnable.default, make), "alternatives": others})
    if isinstance(runnable, RunnableConfigurableFields):
        raise TypeError(
            "Neither tools nor a schema can be bound to a model with configurable_fields; make the model with "
            "init_chat_model(..., configurable_fields=...) instead."
        )
    return make(runnable)


class _Later:
    """An alternative that is made when it is first asked for."""

    def __init__(self, other: Callable[[], Any], make: Callable[[Any], Runnable[Any, Any]]) -> None:
        self._other, self._make = other, make

    def __call__(self) -> Runnable[Any, Any]:
        return carried(self._other(), self._make)


def _is_configured_per_call(runnable: Any) -> bool:
    """Whether it is what `init_chat_model` gives for configurable fields, a private class of LangChain's."""
    return isinstance(runnable, Runnable) and type(runnable).__name__ == "_ConfigurableModel"


def _named(name: str) -> BaseChatModel:
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
        raise SettingsError(
            "A model is given by name as init_chat_model takes it, which needs langchain: pip install langchain, or "
            "give the chat model itself."
        ) from None
    return init_chat_model(name)

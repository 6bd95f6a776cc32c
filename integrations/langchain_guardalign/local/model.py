"""The chat model around a local vision-language model: guard, safety prefix and calibrated attention in one.

A thin skin: what it is stands in `_local_identity`, what is asked in `_local_call`, messages in `_local_messages`,
batches in `_local_batch`. The rest is the core's, which knows no LangChain.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, Literal, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from typing_extensions import Self

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.errors import ModelUnavailable, PromptError

try:
    from guardalign_guardrails.decoding.chat.tool_choice import offer_of
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
except ImportError as error:
    raise ImportError(
        "ChatGuardAlign needs transformers: pip install 'guardalign-guardrails[langchain,local]'."
    ) from error

from langchain_guardalign.events import adispatch, config_within, dispatch, stream_config
from langchain_guardalign.local.batch import Batching, aanswer, answer
from langchain_guardalign.local.call import ANY_OBJECT, Call, call_of, schema_of, tools_of
from langchain_guardalign.local.messages import chat_of, chunk_of, message_of
from langchain_guardalign.local.structured import called, structured


class ChatGuardAlign(Batching):
    """Chats with a local vision-language model that keeps its safety prefix in mind.

    Before the model sees a chat, ``guard`` checks its images: unsafe regions are masked, and a blocked image of the
    current user turn is refused, by ``on_violation``. Without a guard, images are opened unchecked. While it answers,
    attention to the safety prefix is amplified by ``calibration``.

    Nothing is loaded before the first answer, or before `lvlm` is asked for. Calls queue for the model in the order
    they came; ``batch`` and ``abatch`` generate ``batch_size`` answers at a time. Arguments of a call are settings of
    its generation by their names here, ``tools``, ``tool_choice``, ``response_format`` and ``report``.

    Answers have in ``response_metadata``: ``model_name``, ``finish_reason`` (``stop``, ``length``, ``tool_calls``, or
    ``content_filter`` for the policy's refusal), ``calibration``, ``logprobs`` if asked for, and ``guardalign``, the
    findings in the chat's images. The custom event ``guardalign.verdict`` tells of all its images.

    A trace of the run holds the messages as they came, unsafe images included.

    Attributes:
        model: A hub repository, a folder, a GGUF file or ``smollm2``; not given with ``lvlm``.
        revision: Branch, tag or commit of the repository.
        dtype: Of the weights, as transformers takes it.
        device_map: As transformers takes it; None for the CPU.
        quantization_config: As transformers takes it.
        trust_remote_code: Whether code from the repository may run.
        local_files_only: Never ask the hub.
        model_kwargs: More arguments for ``from_pretrained``. A ``token`` among them is kept out of dumps and traces.
        temperature: 0 takes the likeliest token each time. None, here and below, leaves a setting to the model.
        top_p: Nucleus: the smallest set of tokens with this probability together.
        top_k: Only the k likeliest tokens.
        max_tokens: Most tokens of an answer; None for 512.
        stop: Texts that end an answer; they are not part of it.
        seed: Makes sampling repeatable on one machine; that of a batch only as a whole.
        repetition_penalty: Above 1 makes tokens that were there already less likely.
        num_beams: Beams; above 1 there is nothing to stream until the end.
        logprobs: Whether to tell each token's log-probability.
        top_logprobs: How many of the likeliest tokens to tell with each.
        generate_kwargs: More settings of transformers' ``GenerationConfig``.
        calibration: How strongly the prefix is held in attention; None for plain decoding.
        prefix: The safety prefix, and where it goes.
        guard: Checks the images of every chat: a guard, a policy or its file's path, or settings. None checks nothing.
        on_violation: ``refuse`` answers with the policy's refusal, and the model is not asked; ``notice`` lets it
            answer, with a notice in the image's place; ``raise`` raises `UnsafeContentError`.
        report: Whether answers say what share of attention the prefix had before and after calibration.
        batch_size: Most chats of one generation.
        source: Given as ``lvlm``: a ready model in place of a name. What is not set here counts as it is set there.
    """

    @classmethod
    def from_lvlm(cls, lvlm: CalibratedLVLM, **settings: Any) -> Self:
        """A chat model around a ready model, with its safety settings unless others are given."""
        return cls(lvlm=lvlm, **settings)

    # What it makes

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Args:
            tools: Functions, classes, tools or JSON schemas.
            tool_choice: ``auto``, ``none``, ``any`` (``required``, True) or a tool's name; the latter by a grammar, so
                that there is one call for certain unless ``max_tokens`` cuts it off.
            **kwargs: More arguments of calls.

        Raises:
            PromptError: The model knows no tools (raised by the call if nothing is loaded yet), or the choice is none.
        """
        given = tools_of(tools)
        offer_of(given, tool_choice)
        if given and self.loaded is not None:
            _check_tools(self.loaded)
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=list(given), **choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers that are JSON of a schema, by a grammar that leaves the model no other choice.

        The model is not told the schema; say in the chat what you want. A refusal is no object of it:
        `UnsafeContentError` is raised, or with ``include_raw`` is the ``parsing_error``.

        Args:
            schema: A pydantic class, for objects of it; a ``TypedDict`` or a JSON schema, for dictionaries. With
                ``json_mode`` it may be left out, for any JSON object.
            method: ``json_schema`` works with any model, and ``json_mode`` is the same if a schema is given;
                ``function_calling`` forces a tool call instead, for models that know tools.
            include_raw: Whether results are mappings of ``raw``, ``parsed`` and ``parsing_error``.
            strict: Says nothing new: a grammar is always strict.
            **kwargs: More arguments of calls.

        Raises:
            PromptError: The schema cannot be read, or the model knows no tools and was to call one.
            ValueError: There is no such method, or no schema.
        """
        if method not in ("json_schema", "json_mode", "function_calling"):
            raise ValueError("method is json_schema, json_mode or function_calling")
        if schema is None and method != "json_mode":
            raise ValueError("only method='json_mode' can do without a schema")
        wanted = ANY_OBJECT if schema is None else schema_of(schema)
        traced = {"kwargs": {"method": method}, "schema": wanted if schema is None else schema}
        if method == "function_calling":
            model = self.bind_tools(
                [cast("Any", schema)], tool_choice="any", ls_structured_output_format=traced, **kwargs
            )
            return called(model, schema, include_raw=include_raw)
        response = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
        model = self.bind(response_format=response, ls_structured_output_format=traced, **kwargs)
        return structured(model, schema, include_raw=include_raw)

    # What it does

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, config, lvlm = self._call(stop, kwargs), config_within(run_manager), self.lvlm
        _check(call, lvlm)
        try:
            given, row = answer(self, lvlm, chat_of(messages), call)
        except UnsafeContentError as error:
            dispatch([error.verdict], config)
            raise
        dispatch(given.verdicts, config)
        return ChatResult(generations=[ChatGeneration(message=message_of(given, lvlm, row))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, config, lvlm = self._call(stop, kwargs), config_within(run_manager), await self.alvlm()
        _check(call, lvlm)
        try:
            given, row = await aanswer(self, lvlm, chat_of(messages), call)
        except UnsafeContentError as error:
            await adispatch([error.verdict], config)
            raise
        await adispatch(given.verdicts, config)
        return ChatResult(generations=[ChatGeneration(message=message_of(given, lvlm, row))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call, config, lvlm = self._call(stop, kwargs), config_within(run_manager), self.lvlm
        _check(call, lvlm)
        try:
            with closing(cast("Any", lvlm.stream(chat_of(messages), **call.arguments))) as pieces:
                for piece in pieces:
                    dispatch(piece.verdicts, config)
                    chunk = chunk_of(piece, lvlm)
                    if chunk is None:
                        continue
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        except UnsafeContentError as error:
            dispatch([error.verdict], config)
            raise

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call, config, lvlm = self._call(stop, kwargs), config_within(run_manager), await self.alvlm()
        _check(call, lvlm)
        try:
            async with aclosing(cast("Any", lvlm.astream(chat_of(messages), **call.arguments))) as pieces:
                async for piece in pieces:
                    await adispatch(piece.verdicts, config)
                    chunk = chunk_of(piece, lvlm)
                    if chunk is None:
                        continue
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        except UnsafeContentError as error:
            await adispatch([error.verdict], config)
            raise

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """The answer in chunks, as tokens come. Closing it frees the model within one token."""
        with closing(cast("Any", super().stream(input, config, stop=stop, **kwargs))) as chunks:
            with stream_config(config):
                first = next(chunks)
            yield first
            yield from chunks

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream` without blocking the event loop."""
        async with aclosing(cast("Any", super().astream(input, config, stop=stop, **kwargs))) as chunks:
            with stream_config(config):
                first = await anext(chunks)
            yield first
            async for chunk in chunks:
                yield chunk

    def _call(self, stop: list[str] | None, kwargs: dict[str, Any]) -> Call:
        given = {name: value for name, value in kwargs.items() if name != "model"}
        if kwargs.get("model", self.model) != self.model:
            raise ModelUnavailable("One chat model is one local model; make another ChatGuardAlign for another.")
        stop = stop or given.pop("stop", None)
        return call_of(self.base_settings, self.own_settings, {**given, "stop": stop}, is_reported=self.report)


def _check(call: Call, lvlm: CalibratedLVLM) -> None:
    if call.tools:
        _check_tools(lvlm)


def _check_tools(lvlm: CalibratedLVLM) -> None:
    if not lvlm.knows_tools:
        raise PromptError(
            "The model's chat template knows no tools, or its way of writing calls is none of the known ones; use "
            "with_structured_output, which works with any model, or a model that was taught tools."
        )

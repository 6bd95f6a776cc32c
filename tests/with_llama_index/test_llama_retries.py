"""A blocked image is blocked for good: it is refused once, and asked about no second time."""

from __future__ import annotations

from typing import Any

import pytest
from llama_images import ask
from llama_index.core.agent.workflow import AgentStream, FunctionAgent
from llama_index.core.base.response.schema import Response
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import ImageNode
from llama_index.core.utils import ErrorToRetry, retry_on_exceptions_with_backoff
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_models import RecordingLLM
from llama_nodes import b64, index_of
from workflows.retry_policy import (
    retry_if_exception_type,
    retry_if_not_exception_type,
    retry_policy,
    stop_after_attempt,
    wait_fixed,
)

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.testing.chats import canary
from llama_index_guardalign import GuardedLLM

BLUE = canary("blue", number=2)
EVERYTHING = retry_if_exception_type(Exception)
NO_VIOLATION = retry_if_not_exception_type(UnsafeContentError)


@pytest.fixture
def llm():
    return RecordingLLM()


@pytest.mark.parametrize(("condition", "calls"), [(NO_VIOLATION, 1), (EVERYTHING, 3)], ids=["as shown", "everything"])
async def test_a_step_does_not_try_again_if_its_policy_says_so(guard, llm, condition, calls):
    guarded, tried = GuardedLLM(llm=llm, guard=guard, on_violation="raise"), []

    class Flow(Workflow):
        @step(retry_policy=retry_policy(retry=condition, wait=wait_fixed(0), stop=stop_after_attempt(3)))
        async def answer(self, ev: StartEvent) -> StopEvent:
            tried.append(ev)
            return StopEvent(result=await guarded.achat(ev.chat))

    with pytest.raises(UnsafeContentError):
        await Flow().run(chat=[ask(BLUE)])
    assert len(tried) == calls
    assert llm.received == []


def test_the_retries_of_llama_indexs_own_name_their_errors(guard, llm):
    guarded, tried = GuardedLLM(llm=llm, guard=guard, on_violation="raise"), []

    def call() -> Any:
        tried.append(1)
        return guarded.chat([ask(BLUE)])

    with pytest.raises(UnsafeContentError):
        retry_on_exceptions_with_backoff(call, [ErrorToRetry(ConnectionError)], min_backoff_secs=0)
    assert len(tried) == 1


def test_a_refusal_is_what_apps_show(guard, llm):
    guarded = GuardedLLM(llm=llm, guard=guard)
    answer = guarded.chat([ask(BLUE)])
    assert answer.message.content == str(answer.message.content) == guard.policy.refusal
    assert answer.raw["finish_reason"] == "content_filter"
    assert answer.additional_kwargs["guardalign"]["action"] == "block"
    retriever = index_of(ImageNode(text="a photo", image=b64(BLUE))).as_retriever(image_similarity_top_k=1)
    response = RetrieverQueryEngine.from_args(retriever, llm=guarded, multimodal=True).query("birds")
    assert isinstance(response, Response)
    assert str(response) == guard.policy.refusal


async def test_a_refusal_is_what_an_agents_stream_shows(guard, llm):
    handler = FunctionAgent(tools=[], llm=GuardedLLM(llm=llm, guard=guard)).run(user_msg=ask(BLUE))
    (shown,) = [event async for event in handler.stream_events() if isinstance(event, AgentStream)]
    assert (shown.delta, shown.response) == (guard.policy.refusal, guard.policy.refusal)
    assert shown.raw["finish_reason"] == "content_filter"
    assert str(await handler) == guard.policy.refusal

"""What is not one conversation: which test holds each ecosystem to it.

A cell is a test's module and name, or why there is nothing to hold.
"""

from __future__ import annotations

from typing import Final

LANGCHAIN, AGENTS, LLAMA, OPENAI, OPENAI_AGENTS, LITELLM = (
    "LangChain models",
    "LangChain agents",
    "LlamaIndex",
    "OpenAI client",
    "openai-agents",
    "LiteLLM",
)
ECOSYSTEMS: Final = (LANGCHAIN, AGENTS, LLAMA, OPENAI, OPENAI_AGENTS, LITELLM)

_SAME_MODEL: Final = "as LangChain models"
_SAME_CLIENT: Final = "as OpenAI client"
_NO_MEMORY: Final = "keeps no memory"

ITEMS: Final[dict[str, dict[str, str]]] = {
    "Text of which a client makes an image is that image": dict.fromkeys(
        ECOSYSTEMS, "tests/parity/test_parity.py::test_every_other_adapter_does_the_same"
    ),
    "Media under keys that nobody listed is found": {
        LANGCHAIN: "sends no body",
        AGENTS: "sends no body",
        LLAMA: "sends no body",
        OPENAI: "tests/with_openai/test_openai_bodies.py",
        OPENAI_AGENTS: _SAME_CLIENT,
        LITELLM: "tests/content/test_bodies.py",
    },
    "What is not guarded is warned of": {
        LANGCHAIN: "tests/with_langchain/test_fallbacks_and_retries.py::"
        "test_a_violation_never_goes_to_an_unguarded_fallback",
        AGENTS: "tests/with_langchain/test_middleware_unguarded.py::"
        "test_sub_agents_of_deepagents_are_warned_of_unless_the_model_is_wrapped",
        LLAMA: "tests/with_llama_index/test_unguarded_llms.py::test_is_warned_of_once_if_it_is_not_guarded",
        OPENAI: "tests/with_openai/test_openai_client.py",
        OPENAI_AGENTS: "docs/openai.md",
        LITELLM: "tests/with_litellm/test_litellm_check.py::test_one_line_for_each_fault",
    },
    "Images in a transcript of a handoff are found": {
        LANGCHAIN: "no such transcript",
        AGENTS: "no such transcript",
        LLAMA: "no such transcript",
        OPENAI: _SAME_CLIENT,
        OPENAI_AGENTS: "tests/with_openai/test_openai_handoffs.py",
        LITELLM: "no such transcript",
    },
    "A paused run goes on after the policy was edited": {
        LANGCHAIN: "keeps no state",
        AGENTS: "tests/with_langchain/test_middleware_threads.py::"
        "test_a_thread_that_waits_for_the_guard_goes_on_when_a_word_of_the_policy_is_edited",
        LLAMA: "keeps no state",
        OPENAI: "keeps no state",
        OPENAI_AGENTS: "keeps no state",
        LITELLM: "keeps no state",
    },
    "History holds each turn once": {
        LANGCHAIN: "tests/with_langchain/test_message_histories.py::"
        "test_stores_each_turn_once_as_without_a_guard_but_for_masks_and_notices",
        AGENTS: "tests/with_langchain/test_middleware_threads.py::"
        "test_three_harmless_turns_work_and_the_history_is_the_one_without_a_guard",
        LLAMA: "tests/with_llama_index/test_guarded_memory.py::"
        "test_what_is_answered_needs_none_and_is_the_same_with_one",
        OPENAI: _NO_MEMORY,
        OPENAI_AGENTS: "tests/with_openai/test_openai_sessions.py::"
        "test_harmless_sessions_are_what_they_are_without_a_guard",
        LITELLM: _NO_MEMORY,
    },
    "A tool's JSON is media by what it holds": dict.fromkeys(
        ECOSYSTEMS, "tests/parity/test_parity.py::test_a_tools_json_with_everyday_keys_arrives_as_it_is"
    ),
    "Results of MCP tools are checked in artifacts too": {
        LANGCHAIN: "tests/with_langchain/test_artifacts.py::test_every_way_in_checks_them_by_default",
        AGENTS: "tests/with_langchain/test_artifacts.py::test_an_agent_never_keeps_what_an_mcp_tool_sent",
        LLAMA: "has no artifacts",
        OPENAI: "has no artifacts",
        OPENAI_AGENTS: "has no artifacts",
        LITELLM: "has no artifacts",
    },
    "A chat goes on after a blocked image": {
        LANGCHAIN: "tests/with_langchain/test_message_histories.py::test_go_on_after_a_turn_and_keep_each_turn_once",
        AGENTS: "tests/with_langchain/test_middleware_threads.py::"
        "test_three_harmless_turns_work_and_the_history_is_the_one_without_a_guard",
        LLAMA: "tests/with_llama_index/test_guarded_memory.py::"
        "test_goes_on_after_a_blocked_image_that_no_model_ever_sees",
        OPENAI: _NO_MEMORY,
        OPENAI_AGENTS: "tests/with_openai/test_openai_sessions.py::"
        "test_three_harmless_turns_follow_one_that_ended_the_run",
        LITELLM: _NO_MEMORY,
    },
    "An index embeds and finds what was masked": {
        LANGCHAIN: "tests/with_langchain/test_documents.py",
        AGENTS: "has no index",
        LLAMA: "tests/with_llama_index/test_multi_modal_index.py::test_embeds_and_finds_all_that_may_pass",
        OPENAI: "has no index",
        OPENAI_AGENTS: "has no index",
        LITELLM: "has no index",
    },
    "What another guard masked brings the prefix": dict.fromkeys(
        ECOSYSTEMS, "tests/parity/test_parity.py::test_every_other_adapter_does_the_same"
    ),
    "Endpoints that edit images are screened": {
        LANGCHAIN: "has no such call",
        AGENTS: "has no such call",
        LLAMA: "has no such call",
        OPENAI: "tests/with_openai/test_openai_edits.py::test_an_unsafe_image_never_arrives_and_the_masked_one_does",
        OPENAI_AGENTS: "has no such call",
        LITELLM: "tests/with_litellm/test_litellm_files.py",
    },
    "A violation is not retried and its error not shown": {
        LANGCHAIN: "tests/with_langchain/test_fallbacks_and_retries.py::test_a_violation_is_not_tried_again",
        AGENTS: "tests/with_langchain/test_middleware_errors.py::test_is_not_retried_and_its_error_is_shown_to_nobody",
        LLAMA: "tests/with_llama_index/test_llama_retries.py::test_a_step_does_not_try_again_if_its_policy_says_so",
        OPENAI: "tests/with_openai/test_openai_client.py",
        OPENAI_AGENTS: _SAME_CLIENT,
        LITELLM: "tests/with_litellm/test_litellm_proxy.py",
    },
    "Apps display the refusal": dict.fromkeys(
        ECOSYSTEMS, "tests/parity/test_parity.py::test_an_app_that_displays_the_answer_displays_the_refusal"
    ),
    "A first run says what to do": {
        LANGCHAIN: "tests/parity/test_first_run.py::test_langchain",
        AGENTS: "tests/parity/test_first_run.py::test_a_langchain_agent",
        LLAMA: "tests/parity/test_first_run.py::test_llama_index",
        OPENAI: "tests/parity/test_first_run.py::test_openais_client",
        OPENAI_AGENTS: "tests/parity/test_first_run.py::test_openai_agents",
        LITELLM: "tests/parity/test_first_run.py::test_litellm",
    },
}

"""Results of the tools that run at Anthropic, in the shapes of ``anthropic.types``, for tests of every layer."""

from __future__ import annotations

import base64
from typing import Any

PDF = base64.b64encode(b"%PDF-1.7\n" * 20).decode()
ID = "file_011CNha8iCJcU1wXNR6q4V8w"

BASH = "bash_code_execution"
PYTHON = "code_execution"


def made(kind: str = BASH, **more: Any) -> dict[str, Any]:
    return {"type": f"{kind}_output", "file_id": ID, **more}


def executed(*outputs: Any, kind: str = BASH, result: str | None = None) -> dict[str, Any]:
    return {
        "type": f"{kind}_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {
            "type": result or f"{kind}_result",
            "encrypted_stdout" if (result or "").startswith("encrypted") else "stdout": "saved plot.png",
            "stderr": "",
            "return_code": 0,
            "content": list(outputs),
        },
    }


def standard(block: dict[str, Any]) -> dict[str, Any]:
    """The block as LangChain's ``content_blocks`` have it."""
    return {
        "type": "server_tool_result",
        "tool_call_id": block["tool_use_id"],
        "status": "success",
        "extras": {"block_type": block["type"]},
        "output": block["content"],
    }


def fetched(document: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "web_fetch_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {
            "type": "web_fetch_result",
            "url": "https://pages.example/a.pdf",
            "retrieved_at": "2026-01-01T00:00:00Z",
            "content": document,
            **more,
        },
    }


def document(data: str, media_type: str = "application/pdf") -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": data}
    return {"type": "document", "source": source, "title": "A page", "citations": {"enabled": True}}


def viewed(content: Any, file_type: str = "image") -> dict[str, Any]:
    result = {"type": "text_editor_code_execution_view_result", "file_type": file_type, "content": content}
    return {"type": "text_editor_code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": result}


HISTORY: dict[str, dict[str, Any]] = {
    "bash": executed(made(), made()),
    "bash without files": executed(),
    "Python": executed(made(PYTHON), kind=PYTHON),
    "Python with encrypted output": executed(made(PYTHON), kind=PYTHON, result="encrypted_code_execution_result"),
    "an error": {
        "type": "bash_code_execution_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {"type": "bash_code_execution_tool_result_error", "error_code": "unavailable"},
    },
    "a viewed text": viewed("def image(): ...", "text"),
    "a viewed image without content": viewed(""),
    "a created file": {
        "type": "text_editor_code_execution_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {"type": "text_editor_code_execution_create_result", "is_file_update": False},
    },
    "a web search": {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [
            {
                "type": "web_search_result",
                "title": "Images of cats",
                "url": "https://pages.example/cat.png",
                "encrypted_content": base64.b64encode(b"Eo8B" * 40).decode(),
                "page_age": None,
            }
        ],
    },
    "a fetched text": fetched(
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}, "title": "t"}
    ),
    "a fetch that failed": {
        "type": "web_fetch_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {"type": "web_fetch_tool_result_error", "error_code": "url_not_accessible"},
    },
    "an MCP call": {
        "type": "mcp_tool_use",
        "id": "t",
        "name": "p",
        "server_name": "s",
        "input": {"image": {"url": "x"}},
    },
    "an MCP result": {
        "type": "mcp_tool_result",
        "tool_use_id": "t",
        "is_error": False,
        "content": [{"type": "text", "text": "a"}],
    },
    "a tool search": {
        "type": "tool_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {
            "type": "tool_search_tool_search_result",
            "tool_references": [{"type": "tool_reference", "tool_name": "image"}],
        },
    },
    "a browser's state": {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [
            {"type": "browser_state", "tabs": [{"tab_id": "1", "url": "https://pages.example", "active": True}]}
        ],
    },
}

"""An MCP server over stdio whose tool returns an image, and the same image in its structured content.

Run with the path of a PNG file.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from mcp.server.fastmcp import FastMCP
from mcp.types import CallToolResult, ImageContent, TextContent

server = FastMCP("camera")


@server.tool()
def camera() -> CallToolResult:
    """Take an image."""
    data = base64.b64encode(Path(sys.argv[1]).read_bytes()).decode()
    return CallToolResult(
        content=[
            TextContent(type="text", text="Click."),
            ImageContent(type="image", data=data, mimeType="image/png"),
        ],
        structuredContent={"of": "the sky", "image": data, "files": [{"name": "sky.png", "data": data}]},
    )


if __name__ == "__main__":
    server.run("stdio")

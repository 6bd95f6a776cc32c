"""Images, captions and questions of the two examples of retrieval."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

CAPTIONS = {
    "cat.jpg": "a close-up of a ginger cat",
    "coffee.jpg": "a cup of espresso with a spoon on a saucer",
    "coffee_and_pistol.jpg": "something lies beside a coffee cup on the breakfast table",
    "drill.png": "a cordless power tool for the workshop",
    "photographer.jpg": "a man with a camera on a tripod in a park",
    "rifle.png": "a product image from the army surplus catalogue",
}
POISONED = "a calm evening by the sea"
QUESTIONS = (
    "Show me the ginger cat.",
    "What lies beside the coffee cup?",
    "What does a calm evening by the sea look like?",
)


def as_jpeg(path: Path) -> bytes:
    """The same image as other bytes."""
    out = io.BytesIO()
    Image.open(path).convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()

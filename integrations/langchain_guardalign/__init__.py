"""GuardAlign for LangChain: check, mask or route the images of a chat before a model sees them."""

from langchain_guardalign._runnable import ImageGuard
from langchain_guardalign._screening import GuardReport

__all__ = ["GuardReport", "ImageGuard"]

"""Middleware for LangChain agents."""

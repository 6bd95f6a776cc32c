"""Writes admitted chats into prompts, and prompts into tokens."""

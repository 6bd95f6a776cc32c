"""Filters for documents with images."""

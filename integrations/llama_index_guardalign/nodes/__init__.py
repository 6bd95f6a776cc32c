"""Filters for nodes with images, and what uses them."""

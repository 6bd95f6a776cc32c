"""Checks images by a policy: detect, decide, mask, remember."""

"""Measures what safety settings do: prompts and conditions in, answers classified, rates with intervals out."""

"""Measures what safety settings do: prompts and conditions in, answers judged, rates with intervals out."""

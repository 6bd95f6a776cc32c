"""Contracts for integrations that others write, with the recorders they need."""

"""Pickling of components that hold a guard; a copy without its guard would let everything pass, so it is an error."""

from __future__ import annotations

import pickle

from guardalign_guardrails.errors import NotPicklable


def check_pickles(name: str, value: object) -> None:
    """Make sure that a member of a guard or a component can be pickled.

    Args:
        name: Of the member, for the error.
        value: The member.

    Raises:
        NotPicklable: It cannot; where something within it says what, the error names that.
    """
    try:
        pickle.dumps(value)
    except NotPicklable:
        raise
    except Exception as error:  # whatever a member raises, it cannot be pickled
        raise NotPicklable(name, type(value).__name__) from error

"""For tests of apps and integrations: an encoder without weights, and contracts that guard components must keep.

Needs pytest only where a contract is subclassed; nothing here is imported by the package itself.
"""

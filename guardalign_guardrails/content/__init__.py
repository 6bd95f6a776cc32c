"""Chat content as plain data: where media is in it, in whatever way a provider writes it, and how to put it back.

Knows no framework; message classes are turned into plain content by the integrations.
"""

"""Filters for documents and nodes with images: find the images, decide what passes, put on record what was found."""

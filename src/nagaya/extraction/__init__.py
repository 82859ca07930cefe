"""Extraction: the text of a document, and the chunks of a text."""

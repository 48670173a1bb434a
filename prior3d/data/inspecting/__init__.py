"""Inspection of recordings: checks that catch misread files, a summary, and a page with pictures."""

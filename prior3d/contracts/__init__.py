"""The interfaces that plugins implement: one contract per kind, and the table of fields. No machinery."""

"""The interfaces that plugins implement: one contract per kind, the table of fields, and kernel maps."""

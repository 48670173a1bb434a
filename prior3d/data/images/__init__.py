"""Images that stand alone: listed, ordered, decoded."""

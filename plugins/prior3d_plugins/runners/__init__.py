"""Built-in runners, which execute the work per scene."""

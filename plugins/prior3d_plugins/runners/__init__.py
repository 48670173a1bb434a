"""Built-in runners: where work per scene is done."""

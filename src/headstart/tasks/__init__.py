"""The kinds of task: losses, metrics, what is selected by, and rows per class."""

"""A finished run's model in other formats, each checked against PyTorch before it is there."""

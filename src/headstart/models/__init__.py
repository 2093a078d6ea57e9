"""Where models come from, what they are made of, and what is done to them before training."""

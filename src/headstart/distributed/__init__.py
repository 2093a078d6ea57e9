"""Several processes in one run: their places, their messages, their failures, and the model across them."""

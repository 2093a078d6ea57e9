"""Parameter groups, optimizers, schedules and penalties."""

"""Parameter groups, optimizers, schedules, losses and penalties."""

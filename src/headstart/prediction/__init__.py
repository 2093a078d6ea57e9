"""Images in, answers out: what a finished run's model says of images, one after the other, in memory or in a file."""

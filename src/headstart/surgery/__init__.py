"""What is read from a module of the user's own and done to it."""

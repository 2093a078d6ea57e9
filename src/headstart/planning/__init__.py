"""Everything that will happen, decided and shown before the first step, with reasons."""

"""The loop: state, one step, epochs, phases, evaluation. Nothing here touches the disk."""

"""What a run leaves on disk: folder, checkpoints, log, bundle. Nothing here trains."""

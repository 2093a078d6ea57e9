"""What a run leaves on disk: folder, checkpoints, records, bundle, report. Nothing here trains."""

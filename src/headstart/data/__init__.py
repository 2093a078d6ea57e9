"""Images and what they are to be called: listed, decoded, split, cut into batches."""

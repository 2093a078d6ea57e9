"""Where images and their labels come from: folders and tables."""

"""From the record of a run to figures, plots, the model card and the page."""

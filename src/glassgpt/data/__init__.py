"""From text to batches: documents, token files, the loader, and the baselines of a text."""

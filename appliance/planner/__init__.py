"""Memory planning before the download, from the headers of a model's files."""

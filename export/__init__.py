"""From a run folder to files that run without PyTorch, each checked against the one it was made from."""

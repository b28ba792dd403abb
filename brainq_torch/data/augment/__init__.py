"""Train-only random changes of a batch: geometry and appearance."""

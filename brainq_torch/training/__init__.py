"""Training: the LightningModule, its stages, losses and metrics."""

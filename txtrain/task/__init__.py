"""Tasks: what a model is trained to do. One file each, on the one LightningModule in `base`."""

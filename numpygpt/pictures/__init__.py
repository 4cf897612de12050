"""Pictures of a training run and of its model."""

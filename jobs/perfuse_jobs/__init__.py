"""Training, inference and pseudo-labels as Ray jobs."""

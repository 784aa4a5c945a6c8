"""A promoted bundle behind HTTP, on Ray Serve."""

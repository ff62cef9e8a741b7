"""The policies of the fleet file, one module per pipeline, and the units that they are written in."""

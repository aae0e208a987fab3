"""Each stage against a plain loop that does what the published code does, and against the floor: `make bench`."""

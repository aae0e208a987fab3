"""A run's artifacts and models to ranked results for new queries, in this process or by a server on this machine."""

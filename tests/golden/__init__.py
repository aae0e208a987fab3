"""What decides a row of the store, and the artifacts of a small store: pinned, so that a change of the code shows."""

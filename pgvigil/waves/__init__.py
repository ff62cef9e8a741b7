"""A pipeline over the fleet: who is selected, in what order they begin, when to stop, how it ended."""

"""What several mirrors reach together: a simulation of how long many nodes wait, and measurements beside one mirror."""

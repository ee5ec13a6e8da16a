"""How long many nodes wait for one image from a fleet of mirrors: a simulation, for the numbers of docs/scale.md."""

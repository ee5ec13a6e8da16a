"""Everything that speaks to registries."""

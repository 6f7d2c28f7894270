"""The simulator: the production core, unchanged, in virtual time, with a fault at any await, drawn from a seed."""

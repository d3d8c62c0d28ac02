"""What can be put under test: our engine, endpoints, stored outputs."""

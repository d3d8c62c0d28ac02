"""Everything that reads bytes from strangers, given bytes nobody meant well with."""

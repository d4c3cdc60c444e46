"""How true something is: the numbers and their controls."""

"""PyKittens within other libraries: a file for each, which imports it."""

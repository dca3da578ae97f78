"""Array frameworks: read their arrays in place, allocate in them, follow their streams."""

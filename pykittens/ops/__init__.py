"""The operations: one file per family, one class per operation, four faces per class (see `program.Op`)."""

"""The cross-layer construction: transcoders that write to all later layers, for all MLPs."""

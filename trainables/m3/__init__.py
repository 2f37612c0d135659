"""The room `m3`."""

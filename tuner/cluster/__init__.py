"""The room `cluster`."""

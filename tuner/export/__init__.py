"""The room `export`."""

"""The room `search`."""

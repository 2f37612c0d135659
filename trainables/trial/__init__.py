"""The room `trial`."""

"""The room `verdict`."""

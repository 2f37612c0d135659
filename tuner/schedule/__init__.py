"""The room `schedule`."""

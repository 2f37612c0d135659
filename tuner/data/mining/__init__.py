"""Negatives for rows that have none, and the removal of such as are positives in truth.

`request` is what is asked for, and what became of it, `material` reads the rows and the passages that may become their
negatives, `rule` chooses among those near to a query, `mine` does it all; `trainables.mining` finds what is near.
"""

"""One search's directory, on disk or in a bucket: its names, its owner, and its copies.

`names` says what its files are called, `store` opens it wherever it is, `object_storage` speaks to buckets, `prefix` to
the run's part of one, `parts` brings files there and back, `safe_names` checks that names from a bucket stay inside the
folder, `mirror` pushes while a search runs, `lease` keeps a second search out, `garbage` deletes old objects after a
delay. `ownership` says who owns the directory and locks it, `written` which files in it are the program's, `replaced`
renames an earlier search.

Uses: errors and trainables.files. Knows nothing of studies, trials or models.
"""

"""One search's directory, on disk or in a bucket: its names, its owner, and its copies.

`names` says what its files are called, `store` opens it wherever it is, `object_storage` speaks to buckets, `prefix`
to the run's part of one, `safe_names` says where names that come from there may lead, `mirror` pushes while a search
runs, `lease` keeps a second search out, `garbage` removes late what was replaced. `ownership` says whose a directory
is and holds it, `written` what in it is the program's, `replaced` sets an earlier search aside.

Uses: errors and trainables.files. Knows nothing of studies, trials or models.
"""

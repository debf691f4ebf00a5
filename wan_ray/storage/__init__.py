"""Where rows come from and clips go, by local path or fsspec URL, and the protocol that commits them.

A row is claimed (claims.py), rendered, its clip stored under a name that holds its hash and read back, and then its
record created, which only one of any number of writers can (blob.py: exclusive link, conditional request). The record
is the commit: readers trust records, and the index (index.py), which follows them. Work is at least once, a result
exactly once. Nothing that was committed is changed: another attempt has a record of its own (records.py). Claims of a
run that no longer says it is alive (runs.py) may be taken over. What is left of work cut short is waste (waste.py).
"""

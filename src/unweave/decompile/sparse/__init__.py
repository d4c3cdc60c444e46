"""A decompiled network as a table of edges, pruned and trained until few of them are left."""

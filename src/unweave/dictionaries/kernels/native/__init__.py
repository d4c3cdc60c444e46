"""The hot loops in C, compiled on first use by whatever C compiler the machine has.

Nothing is built when unweave is installed, and nothing has to be: without a compiler the same
arithmetic is done by torch's own operations. What C adds is what torch has no operation for: a
selection that reads each score once, sums of rows band by band, an update in one pass.
"""

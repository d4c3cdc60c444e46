"""Claims about causes put to the test: predict what an intervention does, do it, and compare."""

"""The main job: every stage once, in order."""

"""The verbs that work on data files, one file each."""

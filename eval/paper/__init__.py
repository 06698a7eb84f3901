"""The claims of the method as one experiment: `python eval/paper/run.py`. README.md says what is where."""

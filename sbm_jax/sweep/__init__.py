"""Many runs of one configuration with other settings, in one folder: planned together, made once, compared on one page."""

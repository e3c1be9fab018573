"""Training: settings, the module that Lightning trains, what it calls back, and a run."""

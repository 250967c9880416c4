"""A page whose sliders move a spec, and the plan follows: controls, the answer at one setting, its server on this machine alone."""

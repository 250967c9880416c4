"""The model as passes see it (the intermediate representation), and the ways in."""

"""The documentation as a site: pages of reference made from the code, and the commands that stand on pages."""

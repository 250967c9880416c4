"""The decision rule: where a candidate stands, by which criteria those that stand alike are told apart, in which words."""

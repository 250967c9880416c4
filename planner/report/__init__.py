"""A plan or a result as one page for people who decide: facts, what is drawn of them, the page."""

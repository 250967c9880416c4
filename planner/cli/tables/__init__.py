"""What a person sees of each document: one module a document. Everything here prints; nothing computes."""

"""What `check` is asked, in whatever words: options, a pasted command, a spec, a plan, a result, the machine that is here."""

"""What `lib.judges` is made of: verdicts, wordings, their cache and limits, and who is asked."""

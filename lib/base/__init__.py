"""What everybody may use: paths, a missing thing said in one sentence, progress, the store."""

"""IconWorld: things, words and wordings; pictures; the dataset folder that it writes."""

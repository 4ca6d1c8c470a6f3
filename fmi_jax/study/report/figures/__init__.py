"""The figures of a study, by what they show."""

"""The mirror beside what people use today, in one run on one machine, reported as ratios: ``make bench``."""

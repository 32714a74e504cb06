"""One file per metric: its mathematics and the statistic that the report shows."""

"""Parts of a run's record read out of JSON, whoever wrote it. `report.record` puts them together."""

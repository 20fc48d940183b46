"""The commands `evaluate`, `compare`, `report` and `choose-iterations`."""
